"""Plots as SVG text: lines, bars, histograms, intervals, scatters. The one home of plotting.

A plot is a pure function from numbers to a ``<figure>``. Colours are classes (``s1`` to ``s7``, and
``s0`` for what stands back), so that a page's style sheet decides them, in light and in dark. Every
plot has a title, named axes with their units, and a description for those who do not see it.

Shapes: M point, B bin, R row of a plot.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from analysis.report.drawing.markup import Html, element
from analysis.report.drawing.scales import Scale, bounds, plain, spacing, spread

NUM_COLOURS = 7
LETTER = 6.4
"""Mean width of a letter of a label, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What a plot says about itself, and its size in pixels."""

    title: str
    x: str = ""
    """Name and unit of the horizontal axis."""
    y: str = ""
    description: str = ""
    """What is to be seen, for screen readers."""
    width: int = 640
    height: int = 250
    left: int = 56
    right: int = 16
    log_y: bool = False


@dataclass(frozen=True, eq=False)
class Series:
    """Points of one name; ``colour`` is the number of its class."""

    name: str
    x_M: np.ndarray
    y_M: np.ndarray
    colour: int = 1
    kind: Literal["line", "points"] = "line"


@dataclass(frozen=True)
class Interval:
    """A value with its bounds (NaN: none), as one row of a plot."""

    label: str
    value: float
    low: float
    high: float
    colour: int = 1


@dataclass(frozen=True)
class Point:
    """A place on a map, what it is, and where it leads ("": nowhere)."""

    x: float
    y: float
    colour: int
    name: str
    href: str = ""


# --- the parts of a plot --------------------------------------------------------------------------


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> Html:
    return element(
        "text", words, x=f"{x:.1f}", y=f"{y:.1f}", class_=kind or None, text_anchor=anchor
    )


def line(x0: float, y0: float, x1: float, y1: float, kind: str) -> Html:
    ends = {"x1": x0, "y1": y0, "x2": x1, "y2": y1}
    return element("line", class_=kind, **{name: f"{end:.1f}" for name, end in ends.items()})


def box(x: float, y: float, width: float, height: float, kind: str, name: str = "") -> Html:
    inner = element("title", name) if name else None
    sizes = {"x": x, "y": y, "width": max(width, 0), "height": max(height, 0)}
    return element(
        "rect", inner, class_=kind, **{key: f"{size:.1f}" for key, size in sizes.items()}
    )


def trace(x_M: np.ndarray, y_M: np.ndarray) -> str:
    """The path through the finite points."""
    seen = np.isfinite(x_M) & np.isfinite(y_M)
    pairs = zip(x_M[seen].tolist(), y_M[seen].tolist(), strict=True)
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in pairs) if seen.any() else ""


def figure(axes: Axes, *marks: object, kind: str = "") -> Html:
    """The plot's frame: title above, drawing below in a box of its own."""
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


def horizontal(axes: Axes, low: float, high: float) -> Scale:
    return Scale(low, high, axes.left, axes.width - axes.right)


def vertical(axes: Axes, low: float, high: float) -> Scale:
    return Scale(low, high, axes.height - 40, 24, axes.log_y)


def frame(axes: Axes, x: Scale, y: Scale | None) -> list[Html]:
    """Grid lines, ticks and names of the axes; rows of a plot without ``y`` name themselves."""
    floor, end = axes.height - 40, axes.width - axes.right
    marks = [text(4, 12, axes.y, "name")] if axes.y else []
    for tick in y.ticks if y else ():
        height = float(y(tick)) if y else 0
        marks.append(line(axes.left, height, end, height, "grid"))
        marks.append(text(axes.left - 8, height + 4, y.label(tick) if y else "", "tick", "end"))
    for tick in x.ticks:
        place = float(x(tick))
        marks.append(line(place, floor, place, floor + 4, "axis"))
        marks.append(text(place, floor + 17, x.label(tick), "tick", "middle"))
    marks.append(line(axes.left, floor, end, floor, "axis"))
    return [*marks, text(end, axes.height - 6, axes.x, "name", "end")]


def shortened(words: str, width: float) -> str:
    most = max(3, int(width / LETTER))
    return words if len(words) <= most else f"{words[: most - 1]}…"


# --- plots ----------------------------------------------------------------------------------------


def line_chart(axes: Axes, series: Sequence[Series], *, zero: bool = False) -> Html:
    """Lines and points over steps (from 0), each named where it ends."""
    series = [one for one in (drawable(one, log=axes.log_y) for one in series) if len(one.y_M)]
    x = horizontal(axes, *bounds(*(one.x_M for one in series), zero=True))
    y = vertical(axes, *bounds(*(one.y_M for one in series), zero=zero, log=axes.log_y))
    marks: list[Html] = []
    for one in series:
        x_M, y_M = x(one.x_M), y(one.y_M)
        if one.kind == "line":
            marks.append(element("path", d=trace(x_M, y_M), class_=f"line s{one.colour}"))
        else:
            pairs = zip(x_M.tolist(), y_M.tolist(), strict=True)
            marks += [dot(px, py, one.colour, one.name) for px, py in pairs]
    return figure(axes, *frame(axes, x, y), *marks, *end_labels(axes, y, series))


def drawable(series: Series, *, log: bool) -> Series:
    """Without the points that have no place on the axes."""
    seen_M = np.isfinite(series.y_M) & ((series.y_M > 0) | (not log))
    return replace(series, x_M=series.x_M[seen_M], y_M=series.y_M[seen_M])


def end_labels(axes: Axes, y: Scale, series: Sequence[Series]) -> list[Html]:
    named = [one for one in series if one.name]
    ends = [float(y(one.y_M[-1])) for one in named]
    place = axes.width - axes.right + 8
    return [
        text(place, height + 4, shortened(one.name, axes.right - 8), f"label s{one.colour}")
        for one, height in zip(named, spread(ends, 14), strict=True)
    ]


def dot(x: float, y: float, colour: int, name: str = "", radius: float = 3.5) -> Html:
    inner = element("title", name) if name else None
    place = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": radius}
    return element("circle", inner, class_=f"dot s{colour}", **place)


def histogram(axes: Axes, low_B: np.ndarray, high_B: np.ndarray, series: Sequence[Series]) -> Html:
    """Shares by bin, one outline over the other; the y of each series are its bins, in order."""
    x = horizontal(axes, *bounds(low_B, high_B))
    y = vertical(axes, *bounds(*(one.y_M for one in series), zero=not axes.log_y, log=axes.log_y))
    edge_2B = x(np.column_stack([low_B, high_B]).ravel())
    marks: list[Html] = []
    for place, one in enumerate(series):
        top_2B = y(np.maximum(np.repeat(one.y_M, 2), y.low))
        floor = np.full(min(len(edge_2B), 1), y.start)
        ends = [edge_2B[:1], edge_2B, edge_2B[-1:]], [floor, top_2B, floor]
        outline = trace(np.concatenate(ends[0]), np.concatenate(ends[1]))
        marks.append(element("path", d=outline, class_=f"area s{one.colour}"))
        end = axes.width - axes.right
        marks.append(text(end, 34 + 15 * place, one.name, f"label s{one.colour}", "end"))
    return figure(axes, *frame(axes, x, y), *marks)


def window_bars(
    axes: Axes, edge_B1: np.ndarray, value_B: np.ndarray, expected_B: np.ndarray
) -> Html:
    """A bar for each window of training, and a rule where it was expected to end (NaN: none)."""
    x = horizontal(axes, float(edge_B1[0]), float(edge_B1[-1]))
    y = Scale(*bounds(value_B, expected_B, zero=True), axes.height - 22, 8)
    left_B, right_B = x(edge_B1[:-1]) + 1, x(edge_B1[1:]) - 1
    floor = axes.height - 22
    marks = [line(axes.left, floor, axes.width - axes.right, floor, "axis")]
    rules: list[Html] = []
    windows = zip(
        left_B.tolist(), right_B.tolist(), value_B.tolist(), expected_B.tolist(), strict=True
    )
    for left, right, value, expected in windows:
        top = float(y(value))
        name = f"{value:,.3g}"
        if math.isfinite(expected):
            name += f", expected {expected:,.3g}"
            rules.append(line(left, float(y(expected)), right, float(y(expected)), "rule"))
        marks.append(box(left, top, right - left, floor - top, "bar s1", name))
    marks += [
        *rules,
        text(axes.left, axes.height - 7, f"{edge_B1[0]:,.0f}", "tick"),
        text(axes.width - axes.right, axes.height - 7, f"{edge_B1[-1]:,.0f}", "tick", "end"),
        text(axes.left - 6, float(y(y.high)) + 8, plain(y.high, spacing(0, y.high)), "tick", "end"),
        text(axes.left - 6, floor, "0", "tick", "end"),
    ]
    return figure(axes, *marks, kind="small")


def share_bars(axes: Axes, labels: Sequence[str], values: Sequence[float], said: Callable) -> Html:
    """A row for each label with a bar from nought, and its value in words."""
    x = horizontal(axes, 0.0, max([*values, 1e-12]))
    marks: list[Html] = []
    for row, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle = 14 + 20 * row
        marks.append(text(axes.left - 8, middle + 4, label, "tick", "end"))
        marks.append(box(axes.left, middle - 6, float(x(value)) - axes.left, 12, "bar s1"))
        marks.append(text(float(x(value)) + 6, middle + 4, said(value), "tick"))
    return figure(axes, *marks)


def interval_bounds(rows: Sequence[Interval], reference: float) -> tuple[float, float]:
    """What plots of these rows must span; several plots may share it."""
    ends = np.array([[row.value, row.low, row.high] for row in rows], np.float64)
    return bounds(ends, np.array([reference]))


def intervals(
    axes: Axes, rows: Sequence[Interval], *, reference: float, span: tuple[float, float]
) -> Html:
    """A dot with its bounds for each row, about a line of reference."""
    x = horizontal(axes, *span)
    centre = float(x(reference))
    marks = [*frame(axes, x, None), line(centre, 4, centre, axes.height - 40, "rule")]
    for place, row in enumerate(rows):
        middle = 16 + 20 * place
        label = shortened(row.label, axes.left - 12)
        marks.append(text(axes.left - 10, middle + 4, label, "tick", "end"))
        if math.isfinite(row.low) and math.isfinite(row.high):
            low, high = float(x(row.low)), float(x(row.high))
            marks.append(line(low, middle, high, middle, f"whisker s{row.colour}"))
        if math.isfinite(row.value):
            marks.append(dot(float(x(row.value)), middle, row.colour, f"{row.value:.3g}", 4))
    return figure(axes, *marks)


def rows_height(num_rows: int) -> int:
    """Height of a plot of so many rows and an axis below."""
    return 20 * num_rows + 52


def scatter(axes: Axes, points: Sequence[Point], labels: Sequence[Point]) -> Html:
    """A map: only nearness means something, so the axes have no ticks."""
    places = np.array([[point.x, point.y] for point in points], np.float64).reshape(-1, 2)
    x = Scale(*bounds(places[:, 0]), 14, axes.width - 14)
    y = Scale(*bounds(places[:, 1]), axes.height - 14, 14)
    marks: list[Html] = []
    for point in points:
        mark = dot(float(x(point.x)), float(y(point.y)), point.colour, point.name, 3.5)
        marks.append(element("a", mark, href=point.href, tabindex="-1") if point.href else mark)
    for label in labels:
        place = float(x(label.x)), float(y(label.y))
        marks.append(text(*place, label.name, "map-label", "middle"))
    return figure(axes, *marks, kind="map")
