"""Plots as SVG text: lines, bars, histograms, intervals, scatters. All plotting happens here.

A plot is a pure function from numbers to a ``<figure>``. Colours are CSS classes (``s1`` to ``s7``,
and ``s0`` for marks in the background), so the page's style sheet sets them for light and for dark.
Every plot has a title, named axes with units, and a description for screen readers.

Shapes: M point, B bin, R row of a plot.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from markupsafe import Markup

from analysis.report.drawing.axes import (
    Axes,
    baseline,
    circle,
    draw_axes,
    figure,
    line,
    path_data,
    rectangle,
    shorten,
    text,
)
from analysis.report.drawing.markup import element
from analysis.report.drawing.scales import (
    Scale,
    data_bounds,
    spread_apart,
    tick_label,
    tick_spacing,
)

NUM_COLOURS = 7
ROW_HEIGHT = 20
"""Height of a row of a bar chart or an interval chart, in pixels."""
HIGHEST_LABEL = 8.0
"""Middle of a line's label, in pixels from the upper edge, at least."""


@dataclass(frozen=True, eq=False)
class Series:
    """Named points of a line chart or histogram; ``colour`` is the number of a CSS class."""

    name: str
    x_M: np.ndarray
    y_M: np.ndarray
    colour: int = 1
    kind: Literal["line", "points", "rule"] = "line"
    """A rule is a dashed line, for what to compare with."""
    error_M: np.ndarray | None = None
    """Half the length of a whisker at each point; NaN for none."""


@dataclass(frozen=True)
class Interval:
    """A value with its bounds (NaN if unknown): one row of an interval chart."""

    label: str
    value: float
    low: float
    high: float
    colour: int = 1


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot, its name, and the page it links to ("" for none)."""

    x: float
    y: float
    colour: int
    name: str
    href: str = ""


def line_chart(axes: Axes, series: Sequence[Series], *, zero: bool = False) -> Markup:
    """Lines and points over steps, each labelled at its right end.

    The horizontal axis starts at 0 unless it is logarithmic; with ``zero`` the vertical axis
    includes 0.
    """
    drawn = (drawable_points(each, log=axes.log_y) for each in series)
    series = [each for each in drawn if len(each.y_M)]
    x = axes.scale_x(*data_bounds(*(each.x_M for each in series), zero=not axes.log_x))
    y_bounds = data_bounds(*map(reached, series), zero=zero, log=axes.log_y)
    y = axes.scale_y(*y_bounds)
    marks: list[Markup] = []
    for each in series:
        x_M, y_M = x(each.x_M), y(each.y_M)
        marks += whiskers(x, y, each)
        if each.kind == "line":
            marks.append(element("path", d=path_data(x_M, y_M), class_=f"line s{each.colour}"))
        elif each.kind == "rule":
            marks.append(element("path", d=path_data(x_M, y_M), class_="rule", fill="none"))
        else:
            pairs = zip(x_M.tolist(), y_M.tolist(), strict=True)
            marks += [circle(px, py, each.colour, each.name) for px, py in pairs]
    return figure(axes, *draw_axes(axes, x, y), *marks, *end_labels(axes, y, series))


def drawable_points(series: Series, *, log: bool) -> Series:
    """The series without values that are not finite or, with ``log``, not positive."""
    kept_M = np.isfinite(series.y_M) & ((series.y_M > 0) | (not log))
    error_M = None if series.error_M is None else series.error_M[kept_M]
    return replace(series, x_M=series.x_M[kept_M], y_M=series.y_M[kept_M], error_M=error_M)


def reached(series: Series) -> np.ndarray:
    """The values of a series, and the ends of its whiskers."""
    if series.error_M is None:
        return series.y_M
    return np.concatenate([series.y_M, series.y_M - series.error_M, series.y_M + series.error_M])


def whiskers(x: Scale, y: Scale, series: Series) -> list[Markup]:
    """Vertical lines from value − error to value + error, within the axis."""
    if series.error_M is None:
        return []
    low_M = y(np.clip(series.y_M - series.error_M, y.low, y.high))
    high_M = y(np.clip(series.y_M + series.error_M, y.low, y.high))
    ends = zip(x(series.x_M).tolist(), low_M.tolist(), high_M.tolist(), strict=True)
    kind = f"whisker s{series.colour}"
    return [line(at, low, at, high, kind) for at, low, high in ends if math.isfinite(low + high)]


def end_labels(axes: Axes, y: Scale, series: Sequence[Series]) -> list[Markup]:
    """Names of the series, right of their last points and clear of each other."""
    named = [each for each in series if each.name]
    heights = spread_apart([float(y(each.y_M[-1])) for each in named], 14)
    above = max(0.0, HIGHEST_LABEL - min(heights, default=HIGHEST_LABEL))
    below = max(0.0, max(heights, default=0.0) - axes.floor)
    shift = above or -below  # labels of lines that end together would leave the picture
    return [
        text(
            axes.end + 8,
            height + shift + 4,
            shorten(each.name, axes.right - 8),
            f"label s{each.colour}",
        )
        for each, height in zip(named, heights, strict=True)
    ]


def histogram(
    axes: Axes, low_B: np.ndarray, high_B: np.ndarray, series: Sequence[Series]
) -> Markup:
    """Outlines of several histograms over the same bins; ``y_M`` of a series are its bins."""
    x = axes.scale_x(*data_bounds(low_B, high_B))
    heights = (each.y_M for each in series)
    y = axes.scale_y(*data_bounds(*heights, zero=not axes.log_y, log=axes.log_y))
    edge_2B = x(np.column_stack([low_B, high_B]).ravel())
    marks: list[Markup] = []
    for row, each in enumerate(series):
        # On a logarithmic axis an empty bin has no height; it is drawn at the axis instead.
        top_2B = y(np.maximum(np.repeat(each.y_M, 2), y.low))
        floor = np.full(min(len(edge_2B), 1), y.start)
        outline = path_data(
            np.concatenate([edge_2B[:1], edge_2B, edge_2B[-1:]]),
            np.concatenate([floor, top_2B, floor]),
        )
        marks.append(element("path", d=outline, class_=f"area s{each.colour}"))
        marks.append(text(axes.end, 34 + 15 * row, each.name, f"label s{each.colour}", "end"))
    return figure(axes, *draw_axes(axes, x, y), *marks)


def window_chart(
    axes: Axes, edge_B1: np.ndarray, value_B: np.ndarray, expected_B: np.ndarray
) -> Markup:
    """A small bar chart over windows of training; a dashed rule marks each expected value.

    ``edge_B1`` are the first steps of the windows and the end of the last one. An expected value
    of NaN has no rule. Only the ends of the axes are labelled, and their margins are fixed.
    """
    axes = replace(axes, top=8, bottom=22)
    x = axes.scale_x(float(edge_B1[0]), float(edge_B1[-1]))
    y = axes.scale_y(*data_bounds(value_B, expected_B, zero=True))
    left_B, right_B = x(edge_B1[:-1]) + 1, x(edge_B1[1:]) - 1
    bars: list[Markup] = []
    rules: list[Markup] = []
    windows = zip(
        left_B.tolist(), right_B.tolist(), value_B.tolist(), expected_B.tolist(), strict=True
    )
    for left, right, value, expected in windows:
        top = float(y(value))
        name = f"{value:,.3g}"
        if math.isfinite(expected):
            name += f", expected {expected:,.3g}"
            rules.append(line(left, float(y(expected)), right, float(y(expected)), "rule"))
        bars.append(rectangle(left, top, right - left, axes.floor - top, "bar s1", name))
    highest = tick_label(y.high, tick_spacing(0, y.high))
    labels = [
        text(axes.left, axes.height - 7, f"{edge_B1[0]:,.0f}", "tick"),
        text(axes.end, axes.height - 7, f"{edge_B1[-1]:,.0f}", "tick", "end"),
        text(axes.left - 6, float(y(y.high)) + 8, highest, "tick", "end"),
        text(axes.left - 6, axes.floor, "0", "tick", "end"),
    ]
    return figure(axes, baseline(axes), *bars, *rules, *labels, kind="small")


def bar_chart(
    axes: Axes, labels: Sequence[str], values: Sequence[float], show: Callable[[float], str]
) -> Markup:
    """Horizontal bars from 0, one a row, each with its label and its value as ``show`` writes it.

    The height follows from the number of rows.
    """
    axes = replace(axes, height=ROW_HEIGHT * len(labels) + 8)
    x = axes.scale_x(0.0, max([*values, 1e-12]))
    marks: list[Markup] = []
    for row, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle, right = 14 + ROW_HEIGHT * row, float(x(value))
        marks.append(text(axes.left - 8, middle + 4, label, "tick", "end"))
        marks.append(rectangle(axes.left, middle - 6, right - axes.left, 12, "bar s1"))
        marks.append(text(right + 6, middle + 4, show(value), "tick"))
    return figure(axes, *marks)


def interval_chart_bounds(rows: Sequence[Interval], reference: float) -> tuple[float, float]:
    """Bounds of the horizontal axis for these rows; charts to be compared share one pair."""
    values = np.array([[row.value, row.low, row.high] for row in rows], np.float64)
    return data_bounds(values, np.array([reference]))


def interval_chart(
    axes: Axes,
    rows: Sequence[Interval],
    *,
    reference: float,
    span: tuple[float, float] | None = None,
) -> Markup:
    """A point with its interval for each row, and a dashed line at the reference value.

    ``span`` are the bounds of the horizontal axis; None takes those of the rows. The height
    follows from the number of rows.
    """
    axes = replace(axes, height=ROW_HEIGHT * len(rows) + 52)
    x = axes.scale_x(*(span or interval_chart_bounds(rows, reference)))
    centre = float(x(reference))
    marks = [*draw_axes(axes, x, None), line(centre, 4, centre, axes.floor, "rule")]
    for index, row in enumerate(rows):
        middle = 16 + ROW_HEIGHT * index
        label = shorten(row.label, axes.left - 12)
        marks.append(text(axes.left - 10, middle + 4, label, "tick", "end"))
        if math.isfinite(row.low) and math.isfinite(row.high):
            low, high = float(x(row.low)), float(x(row.high))
            marks.append(line(low, middle, high, middle, f"whisker s{row.colour}"))
        if math.isfinite(row.value):
            marks.append(circle(float(x(row.value)), middle, row.colour, f"{row.value:.3g}", 4))
    return figure(axes, *marks)


def scatter(axes: Axes, points: Sequence[Point], labels: Sequence[Point]) -> Markup:
    """A map of points and labels. It has no ticks: only nearness on the map has a meaning."""
    axes = replace(axes, left=14, right=14, top=14, bottom=14)
    position_M2 = np.array([[point.x, point.y] for point in points], np.float64).reshape(-1, 2)
    x = axes.scale_x(*data_bounds(position_M2[:, 0]))
    y = axes.scale_y(*data_bounds(position_M2[:, 1]))
    marks: list[Markup] = []
    for point in points:
        mark = circle(float(x(point.x)), float(y(point.y)), point.colour, point.name)
        # Hundreds of links would stand in the way of the keyboard; the page also lists them.
        marks.append(element("a", mark, href=point.href, tabindex="-1") if point.href else mark)
    for label in labels:
        position = float(x(label.x)), float(y(label.y))
        marks.append(text(*position, label.name, "map-label", "middle"))
    return figure(axes, *marks, kind="map")
