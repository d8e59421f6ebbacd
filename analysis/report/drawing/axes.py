"""What all plots share: axes, and the marks of SVG that plots are made of.

Shapes: M point.
"""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from analysis.report.drawing.markup import element
from analysis.report.drawing.scales import Scale

LETTER_WIDTH = 6.4
"""Mean width of a letter of a label, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Texts and geometry of a plot, in pixels."""

    title: str
    x: str = ""
    """Name and unit of the horizontal axis."""
    y: str = ""
    """Name and unit of the vertical axis."""
    description: str = ""
    """What the plot shows, for screen readers."""
    width: int = 640
    height: int = 250
    """Charts of rows (bars, intervals) compute their own."""
    left: int = 56
    """Margins: the data lie inside of them."""
    right: int = 16
    top: int = 24
    bottom: int = 40
    log_y: bool = False
    log_x: bool = False
    """Whether places follow the logarithm of 1 + value: for counts that may be 0, such as steps."""

    @property
    def floor(self) -> int:
        """Vertical position of the horizontal axis; pixels count downward."""
        return self.height - self.bottom

    @property
    def end(self) -> int:
        """Right end of the horizontal axis."""
        return self.width - self.right

    def scale_x(self, low: float, high: float) -> Scale:
        return Scale(low, high, self.left, self.end, counts=self.log_x)

    def scale_y(self, low: float, high: float) -> Scale:
        return Scale(low, high, self.floor, self.top, self.log_y)


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> Markup:
    return element(
        "text", words, x=f"{x:.1f}", y=f"{y:.1f}", class_=kind or None, text_anchor=anchor
    )


def line(x0: float, y0: float, x1: float, y1: float, kind: str) -> Markup:
    ends = {"x1": x0, "y1": y0, "x2": x1, "y2": y1}
    return element("line", class_=kind, **{name: f"{end:.1f}" for name, end in ends.items()})


def rectangle(x: float, y: float, width: float, height: float, kind: str, name: str = "") -> Markup:
    tooltip = element("title", name) if name else None
    sizes = {"x": x, "y": y, "width": max(width, 0), "height": max(height, 0)}
    return element(
        "rect", tooltip, class_=kind, **{key: f"{size:.1f}" for key, size in sizes.items()}
    )


def circle(x: float, y: float, colour: int, name: str = "", radius: float = 3.5) -> Markup:
    tooltip = element("title", name) if name else None
    geometry = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": radius}
    return element("circle", tooltip, class_=f"dot s{colour}", **geometry)


def path_data(x_M: np.ndarray, y_M: np.ndarray) -> str:
    """The ``d`` attribute of a path through the points that are finite."""
    finite = np.isfinite(x_M) & np.isfinite(y_M)
    pairs = zip(x_M[finite].tolist(), y_M[finite].tolist(), strict=True)
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in pairs) if finite.any() else ""


def figure(axes: Axes, *marks: object, kind: str = "") -> Markup:
    """A ``<figure>``: the title, and below it the drawing in a box that can scroll."""
    drawing = element(
        "svg",
        element("title", axes.title),
        element("desc", axes.description or f"{axes.y} by {axes.x}"),
        *marks,
        viewBox=f"0 0 {axes.width} {axes.height}",
        style=f"min-width:{0.8 * axes.width:.0f}px",
        width=axes.width,
        height=axes.height,
        role="img",
        aria_label=axes.title,
    )
    inner = element("div", drawing, class_="drawing")
    return element(
        "figure", element("figcaption", axes.title), inner, class_=f"plot {kind}".strip()
    )


def draw_axes(axes: Axes, x: Scale, y: Scale | None) -> list[Markup]:
    """Grid lines, ticks and axis names. Without ``y`` there is no vertical axis."""
    marks = [text(4, 12, axes.y, "name")] if axes.y else []
    for tick in y.ticks if y else ():
        height = float(y(tick)) if y else 0
        marks.append(line(axes.left, height, axes.end, height, "grid"))
        marks.append(text(axes.left - 8, height + 4, y.label(tick) if y else "", "tick", "end"))
    for tick in x.ticks:
        position = float(x(tick))
        marks.append(line(position, axes.floor, position, axes.floor + 4, "axis"))
        marks.append(text(position, axes.floor + 17, x.label(tick), "tick", "middle"))
    marks.append(baseline(axes))
    return [*marks, text(axes.end, axes.height - 6, axes.x, "name", "end")]


def baseline(axes: Axes) -> Markup:
    """The line of the horizontal axis."""
    return line(axes.left, axes.floor, axes.end, axes.floor, "axis")


def shorten(words: str, width: float) -> str:
    """Words cut with an ellipsis to about ``width`` pixels."""
    max_letters = max(3, int(width / LETTER_WIDTH))
    return words if len(words) <= max_letters else f"{words[: max_letters - 1]}…"
