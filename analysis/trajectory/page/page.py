"""The page of a trajectory: a text, a plot of each metric over training, and tables.

Shapes: M checkpoint.
"""

import numpy as np
from markupsafe import Markup

from analysis.jobs.question import Question
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import (
    Column,
    code,
    data_table,
    element,
    fact_list,
    fragment,
    integer,
    paragraph,
    section,
    significant,
)
from analysis.report.drawing.plots import NUM_COLOURS, Series, line_chart
from analysis.report.standalone import standalone_page
from analysis.trajectory.page.summary import Curve, Z, curves, most_changed, omitted, summarise
from analysis.trajectory.page.turns import turn_sentences, turns_section
from analysis.trajectory.tables import Trajectory

MOST_NAMED = NUM_COLOURS - 1
"""Curves with a colour and a name; the others are drawn in grey."""
MOST_GREY = 40


def trajectory_page(found: Trajectory, question: Question, place: str) -> bytes:
    """Return the page as one HTML document; ``place`` names the run or the folder."""
    steps = found.checkpoints["step"]
    replayed = int((found.checkpoints["source"] == "replay").sum())
    facts = fact_list(
        [
            ("Checkpoints", integer(len(steps))),
            ("Steps", f"{steps.min():,} to {steps.max():,}"),
            ("Replayed", integer(replayed) if replayed else None),
        ]
    )
    names = [name for name in found.metrics["metric"] if curves(found, name)]
    body = fragment(
        paragraph("Asked: ", code(question.line())),
        facts,
        section("In words", *words(found)),
        *turns_section(found),
        *(metric_section(found, name) for name in names),
    )
    return standalone_page("Trajectory", body, place)


def words(found: Trajectory) -> list[Markup]:
    items = [element("li", line) for line in [*summarise(found), *turn_sentences(found)]]
    left_out = omitted(found.metrics)
    note = paragraph(f"Not measured: {'; '.join(left_out)}.", kind="note") if left_out else None
    return [element("ul", *items), *([note] if note else [])]


def metric_section(found: Trajectory, metric: str) -> Markup:
    """A plot of the metric over steps, and where each component began and ended."""
    (row,) = found.metrics[found.metrics["metric"] == metric].to_dict("records")
    every = curves(found, metric)
    meaning = row["meaning"] + (f". Null: {row['null']}." if row["null"] else ".")
    chart = metric_chart(row, every)
    return section(
        metric, paragraph(meaning[0].upper() + meaning[1:]), chart, ends_table(row, every)
    )


def metric_chart(row: dict, every: list[Curve]) -> Markup:
    """Curves over steps on a logarithmic axis, 95 % intervals as whiskers, the null dashed."""
    named = most_changed(every, MOST_NAMED)
    chosen = {curve.component for curve in named}
    grey = [curve for curve in every if curve.component not in chosen][:MOST_GREY]
    series = [curve_series(curve, 0, "") for curve in grey]
    series += [
        curve_series(curve, number, curve.component or row["metric"])
        for number, curve in enumerate(named, start=1)
    ]
    if (null := common_null(every)) is not None:
        ends = np.array([min(c.step_M[0] for c in every), max(c.step_M[-1] for c in every)])
        series.append(Series("null", ends, np.full(2, null), 0, "rule"))
    title = f"{row['metric']} by training step" + (f" ({row['unit']})" if row["unit"] else "")
    axes = Axes(title=title, x="step", y=row["unit"] or row["metric"], right=150, log_x=True)
    return line_chart(axes, series)


def curve_series(curve: Curve, colour: int, name: str) -> Series:
    error_M = Z * curve.error_M if colour and np.isfinite(curve.error_M).any() else None
    return Series(name, curve.step_M, curve.value_M, colour, "line", error_M)


def common_null(every: list[Curve]) -> float | None:
    """Return the null of all curves if it is one number."""
    nulls = {curve.null for curve in every if np.isfinite(curve.null)}
    return nulls.pop() if len(nulls) == 1 else None


def ends_table(row: dict, every: list[Curve]) -> Markup:
    """First, lowest, highest and last value of each component."""
    columns = [
        Column("component", lambda c: c.component or "whole model", "part of the model"),
        Column("first", lambda c: significant(c.value_M[0]), "at the first checkpoint", True),
        Column("lowest", lambda c: significant(c.value_M.min()), "over all checkpoints", True),
        Column("highest", lambda c: significant(c.value_M.max()), "over all checkpoints", True),
        Column("last", lambda c: significant(c.value_M[-1]), "at the last checkpoint", True),
        Column(
            "± error",
            lambda c: significant(float(Z * c.error_M[-1])),
            "half of the 95 % interval of the last value",
            True,
        ),
        Column("null", lambda c: significant(c.null), row["null"] or "there is none", True),
    ]
    table = data_table(f"{row['metric']} over training", columns, every)
    if len(every) <= MOST_NAMED:
        return table
    return element("details", element("summary", f"All {len(every)} components"), table)
