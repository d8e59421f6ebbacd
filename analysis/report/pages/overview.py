"""The first page: the training run, what was recorded of it, and the audit of the record.

Shapes: M step.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup

from analysis.report.drawing import markup, plots
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import Column, element, fragment, section
from analysis.report.drawing.plots import Series
from analysis.report.pages.confirmation import confirmed_neurons
from analysis.report.pages.neuron_table import neuron_table
from analysis.report.pages.report_data import ReportData, rows_of
from analysis.report.pages.run_settings import run_settings
from analysis.report.pages.sources import COURSE, CoursePage
from analysis.report.pages.website import ReportPage, command_note, data_note
from analysis.run.run import Run
from capture.models import transformer as model

MAX_POINTS = 400
"""Points of a line over steps; more steps are averaged in bins."""
MAX_LINES = 5
"""Units that have a line of their own in plots over steps."""
BYTE_UNITS = ("bytes", "KB", "MB", "GB", "TB")


def overview(data: ReportData, course: Sequence[CoursePage] = ()) -> ReportPage:
    """The first page. ``course``: pages on the course of training, to which it leads."""
    run = data.run
    rows = sum(file.rows or 0 for marker in run.segments for file in marker.files_of("outliers"))
    trained = "The model of a custom training loop"
    if not run.from_custom_loop:
        trained = model.model_label(run.config.model)
    lead = markup.paragraph(
        f"{trained} was trained on {run.num_datums:,} windows of text "
        f"for {run.steps_done:,} steps. The record holds {rows:,} outliers, the largest changes of "
        "single weights due to single datums. This report shows, for "
        f"{len(data.neurons):,} neurons, which tokens are over-represented in what moved them.",
        kind="lead",
    )
    body = fragment(
        element("h1", "Training run"),
        lead,
        run_settings(run, data.sources.used),
        confirmed_neurons(data),
        strongest_neurons(data),
        loss_curves(run),
        course_of_training(run, course),
        outliers_by_unit(data.timeline),
        audit(run),
        storage(run),
        data_note(["training", "attribute"]),
    )
    return ReportPage("index.html", "Overview", body, "index.html")


def strongest_neurons(data: ReportData) -> Markup:
    """The first rows of the table of neurons."""
    return section(
        "Neurons with the most evidence",
        neuron_table(
            data, data.neurons[:10], "Most evidence first (tallies: relative to the unit)"
        ),
        markup.paragraph(element("a", f"All {len(data.neurons):,} neurons", href="neurons.html")),
    )


def bin_means(step_M: np.ndarray, value_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of steps and values over equal bins of steps, at most ``MAX_POINTS``."""
    bin_M = np.arange(len(step_M)) * min(MAX_POINTS, len(step_M)) // max(len(step_M), 1)
    count = np.bincount(bin_M)
    return np.bincount(bin_M, step_M) / count, np.bincount(bin_M, value_M) / count


def loss_curves(run: Run) -> Markup:
    """Training loss and held-out losses over steps."""
    steps, evaluations = run.steps(), run.evaluations()
    step, loss = bin_means(steps["step"].to_numpy(), steps["loss"].to_numpy())
    series = [Series("training", step, loss, 0)]
    for colour, (split, table) in enumerate(evaluations.groupby("split", sort=False), 1):
        at, held_out = table["step"].to_numpy(), table["loss"].to_numpy()
        series.append(Series(str(split), at, held_out, colour))
        series.append(Series("", at, held_out, colour, "points"))
    last = f" to {loss[-1]:.2f}" if len(loss) else ""
    axes = Axes(
        title="Loss over training",
        x="step",
        y="loss, nats per token",
        description=f"Training loss from {loss[0]:.2f}{last} nats per token.",
        right=90,
    )
    return section("Loss", plots.line_chart(axes, series))


def course_of_training(run: Run, course: Sequence[CoursePage]) -> Markup:
    """Links to the pages of trajectories, transitions and spectra, or how to make them."""
    columns = [
        Column("analysis", lambda page: page.job, "The command that made the page"),
        Column("question", lambda page: markup.code(page.question), "Command, options and steps"),
        Column("page", link_of, "A page of its own, beside the tables of the analysis"),
    ]
    missing = [job for job in COURSE if job not in {page.job for page in course}]
    return section(
        "Course of training",
        markup.data_table("Metrics, change points and spectra", columns, course)
        if course
        else None,
        *(command_note("Not computed. Run:", f"ontogeny {job} {run.uri}") for job in missing),
    )


def link_of(page: CoursePage) -> Markup:
    return element("a", "open", href=page.link) if page.link else markup.code(page.uri)


def outliers_by_unit(timeline: pd.DataFrame) -> Markup:
    """The share of each unit in the outliers, over all of training and over steps."""
    by_unit = timeline.groupby("unit")[["rows", "size"]].sum().sort_values("rows", ascending=False)
    share = by_unit["rows"] / max(by_unit["rows"].sum(), 1)
    shown = share[share >= 0.0005]
    axes = Axes(
        title="Share of outliers by unit",
        description="Share of the recorded outliers in each unit, largest first.",
        left=240,
        right=70,
    )
    bars = plots.bar_chart(
        axes, [str(unit) for unit in shown.index], shown.tolist(), one_decimal_percent
    )
    num_hidden = len(share) - len(shown)
    note = f"{num_hidden} further units have less than 0.05 % each."
    return section(
        "Outliers by unit",
        bars,
        markup.paragraph(note, kind="soft") if num_hidden else None,
        outliers_over_time(timeline, list(by_unit.index[:MAX_LINES])),
    )


def one_decimal_percent(share: float) -> str:
    return markup.percent(share, 1)


def outliers_over_time(timeline: pd.DataFrame, units: list[str]) -> Markup:
    """Two plots over training: the units' shares of the outliers, and the mean outlier."""
    rows = timeline.pivot_table(index="first_step", columns="unit", values="rows", aggfunc="sum")
    size = timeline.pivot_table(index="first_step", columns="unit", values="size", aggfunc="sum")
    middle = timeline.groupby("first_step")[["first_step", "end_step"]].first().mean(axis=1)
    total = rows.sum(axis=1).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):  # a bin without outliers has neither
        share = {unit: 100 * rows[unit].to_numpy() / total for unit in units}
        mean = {unit: size[unit].to_numpy() / rows[unit].to_numpy() for unit in units}
    step = middle.to_numpy()
    return fragment(
        unit_lines("Share of outliers by unit over training", "share of outliers, %", step, share),
        unit_lines(
            "Size of outliers over training",
            "mean |shift| of an outlier, in units of the weight",
            step,
            mean,
        ),
    )


def unit_lines(title: str, y: str, step: np.ndarray, value: Mapping[str, np.ndarray]) -> Markup:
    """One line per unit over steps."""
    axes = Axes(
        title=title,
        x="step",
        y=y,
        description=f"One line for each of the {len(value)} units with most outliers.",
        width=800,
        right=220,
    )
    lines = [
        Series(unit, step, values, colour) for colour, (unit, values) in enumerate(value.items(), 1)
    ]
    return plots.line_chart(axes, lines, zero=True)


def audit(run: Run) -> Markup:
    """The conservation audit: how closely the shifts of a step add up to its update."""
    steps = run.steps()
    step_M, error_M = steps["step"].to_numpy(), steps["audit_error"].to_numpy()
    step, error = bin_means(step_M, error_M)
    axes = Axes(
        title="Audit error over training",
        x="step",
        y="|Σ shifts − applied change| / |applied change|",
        description="The audit error of each step, averaged over neighbouring steps.",
        log_y=True,
    )
    words = (
        f"At each of {len(steps):,} steps, the sum of the shifts of all datums was compared with "
        f"the change of the weights. The largest relative error is {error_M.max():.1e}. Training "
        "stops if the error exceeds that of rounding by more than "
        f"{run.config.capture.audit_tolerance:.0e}."
    )
    chart = plots.line_chart(axes, [Series("", step, error, 1)])
    return section("Audit of the record", markup.paragraph(words), chart)


def storage(run: Run) -> Markup:
    """Number, rows and bytes of the run's files, by kind."""
    files = [file for marker in (run.start, *run.segments) for file in marker.files]
    table = pd.DataFrame(
        [(file.kind, file.rows or 0, file.num_bytes) for file in files],
        columns=["kind", "rows", "bytes"],
    )
    sums = table.groupby("kind").agg(
        files=("kind", "size"), rows=("rows", "sum"), bytes=("bytes", "sum")
    )
    columns = [
        Column("kind", lambda row: row.kind, "What the files record"),
        Column("files", lambda row: markup.integer(row.files), "Number of files", numeric=True),
        Column(
            "rows",
            lambda row: markup.integer(row.rows) if row.rows else "",
            "Rows of these tables; empty for files that are no tables",
            numeric=True,
        ),
        Column(
            "size",
            lambda row: format_bytes(row.bytes),
            "Size of these files (1 KB = 1,000 bytes)",
            numeric=True,
        ),
        Column("bytes", lambda row: markup.integer(row.bytes), "The same in bytes", numeric=True),
    ]
    rows = rows_of(sums.sort_values("bytes", ascending=False).reset_index())
    total = f"Files of the run, {format_bytes(int(table['bytes'].sum()))} in total"
    return section("Storage", markup.data_table(total, columns, rows))


def format_bytes(count: float) -> str:
    """Format 12300000 as 12.3 MB."""
    size = 0
    while count >= 1000 and size < len(BYTE_UNITS) - 1:
        count, size = count / 1000, size + 1
    return f"{count:.1f} {BYTE_UNITS[size]}" if size else f"{count:,.0f} {BYTE_UNITS[0]}"
