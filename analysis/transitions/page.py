"""The page of transitions: a text, the order of all halves, and each curve with its change points.

Shapes: M point.
"""

from typing import Any

import numpy as np
from markupsafe import Markup

from analysis.jobs.question import Question
from analysis.measures.foremost import foremost
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import code, element, fragment, paragraph, section
from analysis.report.drawing.plots import (
    NUM_COLOURS,
    Interval,
    Series,
    interval_chart,
    line_chart,
)
from analysis.report.standalone import standalone_page
from analysis.transitions.sentences import summarise, turns_back
from analysis.transitions.shape.shapes import ALPHA
from analysis.transitions.tables import SUDDEN, Transitions

MOST_ROWS = 60
"""Curves in the order of halves, the foremost ones."""
MOST_CHARTS = 24
"""Curves with a plot of their own: the foremost ones."""
Row = dict[Any, Any]


def transitions_page(found: Transitions, question: Question, place: str) -> bytes:
    """Return the page as one HTML document; ``place`` names the first run."""
    rows = foremost(found.curves, MOST_CHARTS).to_dict("records")
    charts = [curve_chart(found, row) for row in rows]
    words = element("ul", *(element("li", line) for line in summarise(found)))
    ordered = foremost(found.curves, MOST_ROWS).sort_values("half_step").to_dict("records")
    left_out = int(found.curves["half_step"].notna().sum()) - len(charts)
    body = fragment(
        paragraph("Asked: ", code(question.line())),
        section("In words", words),
        section("In which order", *order_chart(found, ordered)),
        section("Curves", paragraph(LEGEND), *charts),
        paragraph(f"{left_out} curves more are in the tables.", kind="note") if left_out else None,
    )
    return standalone_page("Transitions", body, place)


LEGEND = (
    "The vertical line is the step of half the change from the first value to the furthest. "
    "Points are change points that explain more than 95 % of those of smooth curves and of random "
    "walks do. Sudden curves come first, then of each metric the curve whose change is largest "
    "relative to its noise."
)


def title(row: Row) -> str:
    return f"{row['metric']} {row['component']}".strip()


def order_chart(found: Transitions, rows: list[Row]) -> list[Markup]:
    """The half of every curve with its interval, beside that of the target."""
    if not rows:
        return [paragraph("No curve changes.")]
    several = found.curves["run"].nunique() > 1
    target = found.warnings["target"].iloc[0] if len(found.warnings) else title(rows[0])
    reference = next((row["half_step"] for row in rows if title(row) == target), 0.0)
    intervals = [
        Interval(
            f"{title(row)} ({row['run']})" if several else title(row),
            row["half_step"],
            row["half_low"],
            row["half_high"],
            2 if row["verdict"] == SUDDEN else 1,
        )
        for row in rows
    ]
    axes = Axes(title="Step of half the change, 95 % interval", x="step", left=220, log_x=True)
    span = (0.0, max(row["half_high"] for row in rows) * 1.05 + 1)
    chart = interval_chart(axes, intervals, reference=reference, span=span)
    note = f"Dashed: {target}. In the second colour: sudden changes."
    return [chart, paragraph(note, kind="note")]


def curve_chart(found: Transitions, row: Row) -> Markup:
    """One curve over log steps, its half, and its clear change points."""
    points = of_curve(found.points, row)
    changes = of_curve(found.changes, row)
    clear = changes[(changes["p_smooth"] <= ALPHA) & (changes["p_walk"] <= ALPHA)]
    step_M, value_M = (points[name].to_numpy(np.float64) for name in ("step", "value"))
    half_M = np.full(2, row["half_step"])
    series = [
        Series("", half_M, np.array([value_M.min(), value_M.max()]), 0, "rule"),
        Series("", step_M, value_M, 1, "line", 1.96 * points["standard_error"].to_numpy()),
    ]
    for number, change in enumerate(clear.to_dict("records")):
        at = change["step"]
        name = f"{at:,.0f} ({change['low']:,.0f} to {change['high']:,.0f})"
        height = np.interp(np.log1p(at), np.log1p(step_M), value_M)
        colour = 2 + number % (NUM_COLOURS - 1)
        series.append(Series(name, np.array([at]), np.array([height]), colour, "points"))
    where = f", {row['run']}" if found.curves["run"].nunique() > 1 else ""
    heading = f"{title(row)}{where}: {row['verdict']}, half at step {row['half_step']:,.0f}"
    heading += ", then turns back" if turns_back(found, row) else ""
    return line_chart(Axes(title=heading, x="step", y=row["metric"], right=150, log_x=True), series)


def of_curve(table, row: Row):
    """Return the rows of a table about the curve of a row."""
    same = table["metric"] == row["metric"]
    for name in ("component", "run"):
        same &= table[name] == row[name]
    return table[same]
