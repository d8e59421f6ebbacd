"""The first page: what was trained, what was recorded, and whether the record can be trusted.

Shapes: M step.
"""

import numpy as np
import pandas as pd

from analysis.report.drawing import markup, plots
from analysis.report.drawing.markup import Html, element, facts, section, together
from analysis.report.drawing.plots import Axes, Series
from analysis.report.pages.neuron_table import neuron_table
from analysis.report.pages.report_data import Material, each
from analysis.report.pages.website import Page
from analysis.run.run import Run
from capture.models import transformer as model
from capture.optim import optimizer, schedule

MOST_POINTS = 400
"""Of a line over steps; more steps are averaged."""
LINES = 5
"""Units with a line of their own."""
SIZES = ("bytes", "KB", "MB", "GB", "TB")


def overview(material: Material) -> Page:
    run = material.run
    rows = sum(file.rows or 0 for marker in run.segments for file in marker.files_of("outliers"))
    lead = markup.paragraph(
        f"{model.called(run.config.model)} learned {run.num_datums:,} windows of text "
        f"in {run.steps_done:,} steps. {rows:,} outsized shifts of single weights were recorded; "
        f"these pages say what they taught {len(material.neurons):,} neurons.",
        kind="lead",
    )
    body = together(
        element("h1", "What the data did to the model"),
        lead,
        settings(run),
        strongest(material),
        learning(run),
        where(material.timeline),
        trust(run),
        sizes(run),
    )
    return Page("index.html", "Overview", body, "index.html")


def settings(run: Run) -> Html:
    config, made = run.config, run.provenance
    training, outliers = config.training, config.capture.outliers
    decline = schedule.in_words(training.schedule, training.decay)
    finished = "complete" if run.steps_done == run.num_steps else "not finished"
    return facts(
        [
            ("Run", markup.code(run.uri)),
            ("Progress", f"{run.steps_done:,} of {run.num_steps:,} steps ({finished})"),
            (
                "Text",
                f"{config.corpus.kind}: {run.num_datums:,} windows of {config.corpus.window} "
                f"tokens, vocabulary {run.num_tokens:,}",
            ),
            ("Model", model.in_words(config.model)),
            (
                "Training",
                f"{training.epochs} epochs of batches of {training.batch}, "
                f"{optimizer.in_words(training.optimizer)}, learning rate "
                f"{training.learning_rate:g} {decline}, clip {training.clip:g}",
            ),
            (
                "Recorded",
                f"top {outliers.k:,} shifts a {outliers.scope} of {run.layout.size:,} parameters "
                f"in {len(run.layout.names)} units",
            ),
            ("Made", f"{made['started_at'][:10]} on {made['device']}, seed {config.run.seed}"),
        ]
    )


def strongest(material: Material) -> Html:
    """The first rows of the table of neurons."""
    return section(
        "The strongest neurons",
        neuron_table(material, material.neurons[:10], "Those with the most evidence"),
        markup.paragraph(element("a", f"All {len(material.neurons):,}", href="neurons.html")),
    )


def averaged(step_M: np.ndarray, value_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal runs of steps, at most ``MOST_POINTS`` of them."""
    bin_M = np.arange(len(step_M)) * min(MOST_POINTS, len(step_M)) // max(len(step_M), 1)
    count = np.bincount(bin_M)
    return np.bincount(bin_M, step_M) / count, np.bincount(bin_M, value_M) / count


def learning(run: Run) -> Html:
    """Loss over steps, training and held out."""
    steps, evaluations = run.steps(), run.evaluations()
    step, loss = averaged(steps["step"].to_numpy(), steps["loss"].to_numpy())
    series = [Series("training", step, loss, 0)]
    for place, (split, table) in enumerate(evaluations.groupby("split", sort=False)):
        at, held_out = table["step"].to_numpy(), table["loss"].to_numpy()
        series.append(Series(str(split), at, held_out, 1 + place))
        series.append(Series("", at, held_out, 1 + place, "points"))
    last = f" to {loss[-1]:.2f}" if len(loss) else ""
    axes = Axes(
        title="Loss over training",
        x="step",
        y="loss, nats per token",
        description=f"Training loss fell from {loss[0]:.2f}{last} nats per token.",
        right=90,
    )
    return section("Learning", plots.line_chart(axes, series))


def where(timeline: pd.DataFrame) -> Html:
    """Which units the outliers fell on, and when."""
    by_unit = timeline.groupby("unit")[["rows", "size"]].sum().sort_values("rows", ascending=False)
    share = by_unit["rows"] / max(by_unit["rows"].sum(), 1)
    shown = share[share >= 0.0005]
    axes = Axes(
        title="Share of outliers by unit",
        description="The units on which the recorded shifts fell, those with most first.",
        left=240,
        right=70,
        height=20 * len(shown) + 8,
    )
    bars = plots.share_bars(axes, [str(unit) for unit in shown.index], shown.tolist(), one_place)
    left_out = len(share) - len(shown)
    rest = f"{left_out} further units have less than 0.05 % each." if left_out else ""
    return section(
        "Where shifts were outsized",
        bars,
        markup.paragraph(rest, kind="soft") if rest else None,
        when(timeline, list(by_unit.index[:LINES])),
    )


def one_place(share: float) -> str:
    return markup.percent(share, 1)


def when(timeline: pd.DataFrame, units: list[str]) -> Html:
    """Two plots over training: how the outliers divided among units, and how large they were."""
    rows = timeline.pivot_table(index="first_step", columns="unit", values="rows", aggfunc="sum")
    size = timeline.pivot_table(index="first_step", columns="unit", values="size", aggfunc="sum")
    middle = timeline.groupby("first_step")[["first_step", "end_step"]].first().mean(axis=1)
    step = middle.to_numpy()
    total = np.maximum(rows.sum(axis=1).to_numpy(), 1)
    shares = [
        Series(unit, step, 100 * rows[unit].to_numpy() / total, place)
        for place, unit in enumerate(units, 1)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = [
            Series(unit, step, size[unit].to_numpy() / rows[unit].to_numpy(), place)
            for place, unit in enumerate(units, 1)
        ]
    share_axes = Axes(
        title="When: how the outliers divide among units",
        x="step",
        y="share of the outliers, %",
        description=f"Lines for the {len(units)} units with most outliers.",
        width=800,
        right=220,
    )
    mean_axes = Axes(
        title="When: how large they were",
        x="step",
        y="mean |shift| of an outlier, in units of the weight",
        description=f"Lines for the {len(units)} units with most outliers.",
        width=800,
        right=220,
    )
    return together(
        plots.line_chart(share_axes, shares, zero=True),
        plots.line_chart(mean_axes, means, zero=True),
    )


def trust(run: Run) -> Html:
    """The audit: do the shifts add up to what was applied?"""
    steps = run.steps()
    step_M, error_M = steps["step"].to_numpy(), steps["audit_error"].to_numpy()
    step, error = averaged(step_M, error_M)
    axes = Axes(
        title="Audit error over training",
        x="step",
        y="|Σ shifts − applied change| / |applied change|",
        description="The audit error of each step, averaged over neighbouring steps.",
        log_y=True,
    )
    words = (
        f"At each of {len(steps):,} steps, the shifts of all datums were added up and compared "
        f"with the change of the weights. The largest relative error was {error_M.max():.1e}; "
        f"training stops at {run.config.capture.audit_tolerance:.0e} more than rounding explains."
    )
    chart = plots.line_chart(axes, [Series("", step, error, 1)])
    return section("Why the numbers can be trusted", markup.paragraph(words), chart)


def sizes(run: Run) -> Html:
    files = [file for marker in (run.start, *run.segments) for file in marker.files]
    table = pd.DataFrame(
        [(file.kind, file.rows or 0, file.num_bytes) for file in files],
        columns=["kind", "rows", "bytes"],
    )
    sums = table.groupby("kind").agg(
        files=("kind", "size"), rows=("rows", "sum"), bytes=("bytes", "sum")
    )
    columns = [
        markup.Column("kind", lambda row: row.kind),
        markup.Column("files", lambda row: markup.whole(row.files), numeric=True),
        markup.Column("rows", lambda row: markup.whole(row.rows) if row.rows else "", numeric=True),
        markup.Column("size", lambda row: in_bytes(row.bytes), numeric=True),
        markup.Column("bytes", lambda row: markup.whole(row.bytes), numeric=True),
    ]
    rows = each(sums.sort_values("bytes", ascending=False).reset_index())
    total = f"Files of the run, {in_bytes(int(table['bytes'].sum()))} in all"
    return section("Sizes", markup.data_table(total, columns, rows))


def in_bytes(count: float) -> str:
    """12300000 → 12.3 MB"""
    size = 0
    while count >= 1000 and size < len(SIZES) - 1:
        count, size = count / 1000, size + 1
    return f"{count:.1f} {SIZES[size]}" if size else f"{count:,.0f} {SIZES[0]}"
