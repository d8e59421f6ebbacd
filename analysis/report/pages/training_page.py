"""The chapter on training itself: metrics, transitions, states, and the spectrum over time.

It shows the tables of ``trajectory``, ``transitions`` and ``spectrum``: of each the set without a
name, or else the first. Their own pages show more; the overview leads to them.

Shapes: R step, M point.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from markupsafe import Markup

from analysis.jobs.tables import read_question, read_table, table_set, table_sets
from analysis.measures.foremost import foremost
from analysis.report.drawing import plots
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.cumulative import directions_chart
from analysis.report.drawing.markup import (
    Column,
    code,
    data_table,
    element,
    fragment,
    integer,
    paragraph,
    percent,
    section,
    significant,
)
from analysis.report.drawing.plots import NUM_COLOURS, Interval, Series
from analysis.report.pages.website import ReportPage, command_note
from analysis.run.run import Run
from capture.errors import ColumnError, RunError

KEY = "training.html"
STRING, INT, LONG, REAL = pa.string(), pa.int32(), pa.int64(), pa.float64()
CURVE = {"metric": STRING, "component": STRING}
WANTED: Mapping[str, Mapping[str, Mapping[str, pa.DataType]]] = {
    "trajectory": {
        "trajectory": {
            **{"step": LONG, **CURVE, "value": REAL},
            **{"standard_error": REAL, "null": REAL},
        },
        "metrics": {"metric": STRING, "unit": STRING, "meaning": STRING},
    },
    "transitions": {
        "curves": {
            **{"run": STRING, **CURVE, "verdict": STRING, "q": REAL},
            **{"change": REAL, "noise": REAL},
            **{"half_step": REAL, "half_low": REAL, "half_high": REAL},
        },
        "states": {"run": STRING, "step": REAL, "state": INT},
        "state_summary": {"state": INT, "occupancy": REAL, "runs": INT},
        "state_choice": {"states": INT, "bic": REAL},
    },
    "spectrum": {
        "directions": {"direction": INT, "value": REAL, "share": REAL, "centre": REAL},
        "steps": {"direction": INT, "step": INT, "weight": REAL},
    },
}
"""Job → table → column → type."""
MOST_METRICS = 16
"""Metrics with a plot."""
MOST_HALVES = 30
"""Curves in the order of their halves: the sudden ones, and the clearest of each metric."""
SUDDEN = "sudden"


@dataclass(frozen=True, eq=False)
class CourseTables:
    """Tables of one analysis of training."""

    frames: Mapping[str, pd.DataFrame]
    question: str
    """Command and options."""


def training_page(run: Run) -> ReportPage:
    parts: list[tuple[str, str, Callable[[CourseTables], Markup]]] = [
        ("Metrics at the checkpoints", "trajectory", metrics),
        ("When each metric changed", "transitions", halves),
        ("States of training", "transitions", states),
        ("Directions over time", "spectrum", directions),
    ]
    found = {job: course_tables(run, job) for job in WANTED}
    sections = [shown(run, title, job, found[job], draw) for title, job, draw in parts]
    return ReportPage(KEY, "Training", fragment(element("h1", "Training"), *sections), KEY)


def shown(
    run: Run,
    title: str,
    job: str,
    tables: CourseTables | None,
    draw: Callable[[CourseTables], Markup],
) -> Markup:
    """A section of one job's tables, or with the command that computes them."""
    if tables is None:
        return section(title, command_note("Not computed. Run:", f"ontogeny {job} {run.uri}"))
    return section(title, draw(tables), paragraph("From ", code(tables.question), kind="soft"))


def course_tables(run: Run, job: str) -> CourseTables | None:
    """Return a job's tables without a name, or else the first set; None without any that fit.

    Tables of an earlier state of the run, or of an earlier version, do not fit. Raises
    ``ShardError`` for damaged ones.
    """
    for name in table_sets(run, job):
        own = table_set(job, name)
        try:
            frames = {
                table: read_table(run, own, table, pa.schema(columns.items()))
                for table, columns in WANTED[job].items()
            }
        except (RunError, ColumnError):
            continue
        return CourseTables(frames, read_question(run, own).line())
    return None


# --- sections -------------------------------------------------------------------------------------


def metrics(tables: CourseTables) -> Markup:
    """One plot for each metric of the whole model, with its null."""
    rows = tables.frames["trajectory"]
    whole = rows[rows["component"] == ""]
    named = tables.frames["metrics"].set_index("metric")
    names = [name for name in dict.fromkeys(whole["metric"]) if name in named.index]
    charts = [
        metric_chart(whole[whole["metric"] == name], named.loc[name])
        for name in names[:MOST_METRICS]
    ]
    left_out = rows["metric"].nunique() - len(charts)
    note = f"{left_out} metrics more, of layers, heads or units, are on the page of the analysis."
    return fragment(*charts, paragraph(note, kind="soft") if left_out > 0 else None)


def metric_chart(own: pd.DataFrame, about: pd.Series) -> Markup:
    own = own.sort_values("step")
    step_M, value_M = own["step"].to_numpy(), own["value"].to_numpy()
    series = [
        Series("null", step_M, own["null"].to_numpy(), 0, "rule"),
        Series("", step_M, value_M, 1, "line", 1.96 * own["standard_error"].to_numpy()),
    ]
    axes = Axes(
        title=str(about.name),
        x="step",
        y=str(about["unit"]),
        description=f"{about['meaning']}, from {value_M[0]:.4g} to {value_M[-1]:.4g}.",
        right=70,
        log_x=True,
    )
    return plots.line_chart(axes, series)


def halves(tables: CourseTables) -> Markup:
    """The step of half the change of each curve, in order, and the verdicts."""
    curves = tables.frames["curves"]
    changing = foremost(curves, MOST_HALVES).sort_values("half_step", kind="stable")
    if changing.empty:
        return paragraph("No metric changes by more than its noise.")
    rows = changing.to_dict("records")
    several = curves["run"].nunique() > 1
    intervals = [
        Interval(
            name_of(row, several=several),
            row["half_step"],
            row["half_low"],
            row["half_high"],
            2 if row["verdict"] == SUDDEN else 1,
        )
        for row in rows
    ]
    axes = Axes(title="Step of half the change, 95 % interval", x="step", left=240, log_x=True)
    span = (
        0.0,
        float(np.nanmax([[row["half_high"], row["half_step"]] for row in rows])) * 1.05 + 1,
    )
    counts = curves["verdict"].value_counts()
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return fragment(
        plots.interval_chart(axes, intervals, reference=rows[0]["half_step"], span=span),
        paragraph(f"Verdicts: {verdicts}. In the second colour: sudden changes.", kind="soft"),
    )


def name_of(row: dict[Any, Any], *, several: bool) -> str:
    name = f"{row['metric']} {row['component']}".strip()
    return f"{name} ({row['run']})" if several else name


def states(tables: CourseTables) -> Markup:
    """The state of the hidden Markov model at each step, and how often each state is visited."""
    visited = tables.frames["states"]
    if visited.empty:
        return paragraph("No states: too few metrics or points, or transitions was asked for none.")
    series = []
    for name, own in visited.groupby("run", sort=False):
        own = own.sort_values("step")
        # A step holds until the next begins.
        step_M = np.repeat(own["step"].to_numpy(np.float64), 2)[1:]
        state_M = np.repeat(own["state"].to_numpy(np.float64), 2)[:-1]
        label = str(name) if visited["run"].nunique() > 1 else ""
        series.append(Series(label, step_M, state_M, 1 + len(series) % (NUM_COLOURS - 1)))
    axes = Axes(title="State over training", x="step", y="state", right=110, log_x=True)
    columns = [
        Column("state", lambda row: integer(row["state"]), "numbered by first visit", True),
        Column("share", lambda row: percent(row["occupancy"]), "of all points", True),
        Column("runs", lambda row: integer(row["runs"]), "that visit it", True),
    ]
    summary = tables.frames["state_summary"].to_dict("records")
    return fragment(
        plots.line_chart(axes, series), data_table("States of training", columns, summary)
    )


def directions(tables: CourseTables) -> Markup:
    """How much of each singular direction lies up to which step."""
    columns = [
        Column("direction", lambda row: integer(row["direction"]), "largest first", True),
        Column("value", lambda row: significant(row["value"]), "singular value", True),
        Column("share", lambda row: percent(row["share"], 1), "of the sum of squares", True),
        Column("centre", lambda row: integer(row["centre"]), "mean step, weighted", True),
    ]
    rows = tables.frames["directions"].to_dict("records")
    chart = directions_chart(tables.frames["steps"])
    return fragment(chart, data_table("Directions", columns, rows))
