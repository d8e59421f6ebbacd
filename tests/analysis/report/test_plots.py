"""Plots: ticks are round and within bounds; every drawing is well formed and described."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from analysis.report.drawing import plots
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.cumulative import cumulative_share
from analysis.report.drawing.plots import Interval, Point, Series
from analysis.report.drawing.scales import (
    Scale,
    data_bounds,
    power_ticks,
    round_ticks,
    spread_apart,
    tick_spacing,
)

AXES = Axes(title="A <title> & more", x="step", y="loss, nats")
FINITE = st.floats(-1e9, 1e9)
NUMBERS = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=12)


def parsed(drawing: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)


def numbers_in(drawing: Markup) -> list[float]:
    """All coordinates and sizes in attributes."""
    names = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"}
    marks = parsed(drawing).iter()
    return [float(value) for mark in marks for name, value in mark.items() if name in names]


# --- scales ---------------------------------------------------------------------------------------


@given(low=FINITE, width=st.floats(1e-3, 1e9))
def test_ticks_are_few_round_and_within_the_bounds(low: float, width: float) -> None:
    high, step = low + width, tick_spacing(low, low + width)
    ticks = round_ticks(low, high)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-6 * step <= tick <= high + 1e-6 * step for tick in ticks)
    assert np.allclose(np.array(ticks) / step, np.round(np.array(ticks) / step))
    assert float(f"{step:.0e}") == pytest.approx(step)
    assert f"{step:.0e}"[0] in "125"


@given(first=st.integers(-12, 5), decades=st.integers(1, 20))
def test_a_logarithmic_axis_has_powers_of_ten(first: int, decades: int) -> None:
    ticks = power_ticks(10.0**first, 10.0 ** (first + decades))
    assert 2 <= len(ticks) <= 6
    assert ticks[0] == pytest.approx(10.0**first)


@given(last=st.integers(1, 10**7))
def test_an_axis_of_counts_begins_at_zero_and_has_few_ticks(last: int) -> None:
    scale = Scale(0, last, 50, 500, counts=True)
    assert (float(scale(0)), float(scale(last))) == pytest.approx((50, 500))
    assert scale.ticks[0] == 0
    assert 2 <= len(scale.ticks) <= 9
    assert all(0 <= tick <= last for tick in scale.ticks)
    assert float(scale(1)) - float(scale(0)) > float(scale(last)) - float(scale(last - 1)) - 1e-9


@pytest.mark.parametrize(("low", "high"), [(2, 400), (0, 30), (100, 600), (3, 40)])
def test_ticks_of_counts_stand_apart_on_the_logarithmic_axis(low: float, high: float) -> None:
    scale = Scale(low, high, 0, 500, counts=True)
    pixel_K = scale(np.array(scale.ticks))
    assert 3 <= len(pixel_K) <= 8
    assert np.diff(pixel_K).min() > 35


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_labels_of_lines_that_end_together_stay_within_the_picture(end: float) -> None:
    x_M, y_M = np.array([0.0, 1.0]), np.array([1 - end, end])
    series = [Series(f"line {number}", x_M, y_M, number) for number in range(1, 7)]
    marks = [
        m for m in parsed(plots.line_chart(AXES, series)).iter() if "label" in m.get("class", "")
    ]
    heights = sorted(float(mark.get("y", "nan")) for mark in marks)
    assert len(heights) == 6
    assert heights[0] >= 10
    assert heights[-1] <= AXES.height - 4
    assert min(np.diff(heights)) == pytest.approx(14)


def test_whiskers_and_rules_are_drawn_within_the_axes() -> None:
    steps, values = np.array([0.0, 10, 100]), np.array([3.0, 2, 1])
    errors = np.array([0.5, np.nan, 99])
    series = [
        Series("loss", steps, values, 1, "line", errors),
        Series("null", steps, values, 0, "rule"),
    ]
    drawing = plots.line_chart(replace(AXES, log_x=True), series)
    marks = [mark.get("class", "") for mark in parsed(drawing).iter()]
    assert marks.count("whisker s1") == 2
    assert marks.count("rule") == 1
    assert all(0 <= number <= 640 for number in numbers_in(drawing))


@given(values=NUMBERS, zero=st.booleans())
def test_bounds_include_all_finite_values_and_differ(values: list[float], zero: bool) -> None:
    low, high = data_bounds(np.array(values), zero=zero)
    finite = [value for value in values if np.isfinite(value)]
    assert low < high
    assert all(low <= value <= high for value in finite)
    assert low <= 0 <= high or not zero


def test_a_scale_maps_its_bounds_to_its_ends() -> None:
    for scale in (Scale(2.0, 8.0, 10, 90), Scale(0.01, 100.0, 90, 10, log=True)):
        assert scale(scale.low) == pytest.approx(scale.start)
        assert scale(scale.high) == pytest.approx(scale.end)
    assert Scale(0.01, 100.0, 0, 40, log=True)(1.0) == pytest.approx(20)


@pytest.mark.parametrize(
    ("low", "high", "label"),
    [(0, 1, "0.2"), (0, 50_000, "10,000"), (-4, 4, "−2"), (0, 2e-6, "5e−07"), (0, 9e9, "2e+09")],
)
def test_tick_labels(low: float, high: float, label: str) -> None:
    scale = Scale(low, high, 0, 100)
    assert label in [scale.label(tick) for tick in scale.ticks]


def test_a_logarithmic_axis_is_labelled_with_powers() -> None:
    assert Scale(1e-6, 1.0, 0, 1, log=True).label(1e-6) == "10⁻⁶"


@given(positions=st.lists(st.floats(0, 200), max_size=8))
def test_spread_labels_keep_their_order_and_distance(positions: list[float]) -> None:
    moved = np.array(spread_apart(positions, 14))
    order = np.argsort(positions, kind="stable")
    assert len(moved) == len(positions)
    assert (np.diff(moved[order]) >= 14 - 1e-6).all()


# --- drawings -------------------------------------------------------------------------------------


def drawings(values: list[float]) -> list[Markup]:
    """One plot of each kind with these numbers."""
    value_M = np.array(values, np.float64)
    x_M, edge_M1 = np.arange(len(values)), np.arange(len(values) + 1)
    log = Axes(title="t", log_y=True)
    made = [
        plots.line_chart(AXES, [Series("a & b", x_M, value_M), Series("", x_M, value_M)]),
        plots.line_chart(log, [Series("points", x_M, value_M, 2, "points")]),
        plots.histogram(AXES, edge_M1[:-1], edge_M1[1:], [Series("<b>", x_M, value_M)]),
        plots.histogram(log, edge_M1[:-1], edge_M1[1:], [Series("s", x_M, value_M)]),
        plots.window_chart(AXES, edge_M1, np.abs(np.nan_to_num(value_M)), value_M),
        plots.bar_chart(AXES, ["<x>"] * len(values), np.nan_to_num(value_M).tolist(), str),
        plots.scatter(AXES, [Point(v, -v, 1, "<i>", "a.html?b&c") for v in values if v == v], []),
    ]
    rows = [Interval("<label>", value, value - 1, float("nan")) for value in values]
    span = plots.interval_chart_bounds(rows, 0.5)
    return [*made, plots.interval_chart(AXES, rows, reference=0.5, span=span)]


@given(values=NUMBERS)
def test_every_plot_of_any_numbers_is_well_formed_and_finite(values: list[float]) -> None:
    for drawing in drawings(values):
        assert np.isfinite(numbers_in(drawing)).all()
        assert "nan" not in drawing
        assert "inf" not in drawing


def test_every_plot_has_a_title_and_a_description() -> None:
    for drawing in drawings([1.0, 2.0, 4.0]):
        svg = parsed(drawing).find(".//svg")
        assert svg is not None
        assert svg.get("role") == "img"
        assert (
            svg.findtext("title") == svg.get("aria-label") == parsed(drawing).findtext("figcaption")
        )
        assert svg.findtext("desc")


def test_a_line_goes_through_its_points() -> None:
    axes = Axes(title="t", width=116, height=164, left=0, right=16)
    drawing = plots.line_chart(axes, [Series("", np.array([0, 5, 10]), np.array([0, 1, 2]))])
    path = parsed(drawing).find(".//path")
    assert path is not None
    assert path.get("d") == "M0.0,124.0L50.0,74.0L100.0,24.0"


def test_a_bar_is_as_high_as_its_value() -> None:
    axes = Axes(title="t", width=100, height=130, left=0, right=0)
    drawing = plots.window_chart(
        axes, np.array([0, 1, 2]), np.array([2.0, 4.0]), np.array([1.0, 1.0])
    )
    heights = [float(bar.get("height", "0")) for bar in parsed(drawing).iter("rect")]
    assert heights == [50.0, 100.0]
    assert len([mark for mark in parsed(drawing).iter("line") if mark.get("class") == "rule"]) == 2


def test_a_point_links_to_its_page_but_is_skipped_by_the_tab_key() -> None:
    link = parsed(plots.scatter(AXES, [Point(0, 0, 1, "n", "neuron/x.html")], [])).find(".//a")
    assert link is not None
    assert link.attrib == {"href": "neuron/x.html", "tabindex": "-1"}


# --- cumulative shares ----------------------------------------------------------------------------


def test_shares_are_those_of_all_steps_so_far_in_any_order() -> None:
    step_M, share_M = cumulative_share(np.array([9, 0, 4]), np.array([2.0, 1.0, 1.0]), 10)
    assert step_M.tolist() == [0, 4, 9]
    assert share_M.tolist() == [0.25, 0.5, 1]


def test_kept_steps_are_few_at_the_end_and_their_shares_exact() -> None:
    part_R = np.random.default_rng(0).random(5000)
    step_M, share_M = cumulative_share(np.arange(5000), part_R, 60)
    assert len(step_M) <= 60
    assert (step_M[:5] == np.arange(5)).all()
    assert step_M[-1] == 4999
    assert (np.diff(step_M) > 0).all()
    assert share_M == pytest.approx(np.cumsum(part_R)[step_M] / part_R.sum())


def test_one_step_has_everything() -> None:
    assert [each.tolist() for each in cumulative_share(np.array([7]), np.ones(1), 9)] == [[7], [1]]
