"""The chapter that compares the run with another one: figures, losses, and tokens of neurons."""

from functools import partial
from typing import Any

from markupsafe import Markup

from analysis.report.drawing import markup, plots
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import Column, element, fragment, section
from analysis.report.drawing.plots import Series
from analysis.report.pages import definitions
from analysis.report.pages.comparison.compared_runs import Comparison
from analysis.report.pages.overview import bin_means
from analysis.report.pages.report_data import ReportData, rows_of
from analysis.report.pages.sources import Sources
from analysis.report.pages.website import Links, ReportPage, command_note
from analysis.run.run import Run
from capture.models import transformer as model
from capture.optim.optimizer_config import describe_optimizer

KEY, TITLE = "compare.html", "Comparison of two runs"
PAIRS_SHOWN = 200
NEURON_IDENTITY = "compared-neurons"


def comparison(data: ReportData) -> ReportPage:
    """The page; without another run it names the option that compares."""
    found = data.comparison
    heading = element("h1", TITLE)
    if found is None:
        command = f"ontogeny report {data.run.uri} --compare OTHER"
        body = fragment(heading, command_note("Not computed. Run:", command))
        return ReportPage(KEY, TITLE, body, KEY)
    lead = markup.paragraph(
        "This run (A) is ",
        markup.code(found.run.uri),
        ", the other one (B) ",
        markup.code(found.other.uri),
        ".",
        kind="lead",
    )
    body = fragment(
        heading,
        lead,
        text_note(found),
        figures(data, found),
        losses(found),
        agreement(found),
        neurons(found, data.links),
    )
    return ReportPage(KEY, TITLE, body, KEY)


def text_note(found: Comparison) -> Markup:
    """Whether the runs read the same text, without which losses cannot be compared."""
    names = {"datums": "training text", "validation": "validation text", "test": "test text"}
    names["vocab"] = "vocabulary"
    parts = [
        f"{names[name]}: {'the same' if same else 'different'}"
        for name, same in found.same_text.items()
    ]
    words = "; ".join(parts) or "The runs hold no text that could be compared"
    warning = (
        ""
        if all(found.same_text.values()) and parts
        else (" Losses on different text or with another vocabulary cannot be compared.")
    )
    return markup.paragraph(f"{words[:1].upper()}{words[1:]}.{warning}", kind="soft")


# --- figures --------------------------------------------------------------------------------------


def figures(data: ReportData, found: Comparison) -> Markup:
    """One row per figure or setting, with a column for each run."""
    own, theirs = facts(found.run, data.sources), facts(found.other, found.sources)
    columns = [
        Column("figure", lambda name: name, "What the row is about, with its unit"),
        Column("A", lambda name: own.get(name, markup.MISSING), "Value of this run"),
        Column("B", lambda name: theirs.get(name, markup.MISSING), "Value of the other run"),
        Column(
            "differs",
            lambda name: "differs" if own.get(name) != theirs.get(name) else "",
            "Whether the two values differ",
        ),
    ]
    names = [*own, *(name for name in theirs if name not in own)]
    return section("Settings and results", markup.data_table("A and B", columns, names))


def facts(run: Run, sources: Sources) -> dict[str, str]:
    """Figure → its value for one run, as text."""
    training, steps = run.config.training, run.steps()
    found = {
        "steps": f"{run.steps_done:,}",
        "training datums": f"{run.num_datums:,}",
        "parameters recorded": f"{run.layout.size:,}",
    }
    if not run.from_custom_loop:
        found |= {
            "seed": str(run.config.run.seed),
            "model": model.describe_model(run.config.model),
            "optimizer": describe_optimizer(training.optimizer),
            "learning rate": f"{training.learning_rate:g}",
            "batch": f"{training.batch:,} datums",
        }
    last = steps["loss"].tail(max(1, len(steps) // 20))
    found["training loss, mean of the last 5 % of steps, nats"] = markup.decimals(last.mean(), 3)
    for split, table in run.evaluations().groupby("split", sort=False):
        found[f"{split} loss at the end, nats"] = markup.decimals(table["loss"].iloc[-1], 3)
        last = table.iloc[-1]
        if "accuracy" in table:
            found[f"{split} accuracy at the end"] = markup.percent(last["accuracy"])
        else:
            found[f"{split} perplexity at the end"] = markup.decimals(last["perplexity"], 1)
    found["largest audit error, relative"] = f"{steps['audit_error'].max():.1e}"
    return found | results(sources)


def results(sources: Sources) -> dict[str, str]:
    """Figure → its value, for what analyses found."""
    found = {"neurons with named tokens": f"{named_neurons(sources):,}"}
    for case in rows_of(sources["attribute", "nulls"]):
        interval = markup.interval(case.low, case.high, one_decimal)
        found[f"neurons confirmed: {case.case}"] = (
            f"{case.confirmed_groups:,} of {case.groups:,} (95 % CI {interval})"
        )
    scores = sources["faithfulness", "scores"]
    if len(scores):
        best = scores[~scores["baseline"].astype(bool)].groupby("evidence")["auc"].mean()
        found["AUC of the best evidence, mean over units"] = (
            f"{best.max():.3f} ({best.idxmax()})" if len(best) else markup.MISSING
        )
    return found


def named_neurons(sources: Sources) -> int:
    return len(sources["attribute", "tokens"][["unit", "group"]].drop_duplicates())


def one_decimal(share: float) -> str:
    return markup.percent(share, 1)


# --- losses ---------------------------------------------------------------------------------------


def losses(found: Comparison) -> Markup:
    """Losses of both runs on one pair of axes."""
    scales = [datums_per_step(run) for run in (found.run, found.other)]
    by_datums = None not in scales and scales[0] != scales[1]
    series = []
    for name, run, scale, colour in zip(
        "AB", (found.run, found.other), scales, (1, 2), strict=True
    ):
        factor = scale if by_datums and scale else 1
        series += loss_series(name, run, factor, colour)
    axes = Axes(
        title="Loss over training, both runs",
        x="training datums seen" if by_datums else "step",
        y="loss, nats per token",
        description="Lines: training loss of A and B. Points: held-out losses.",
        right=130,
    )
    note = "The batches differ in size, so the axis counts datums." if by_datums else None
    return section(
        "Loss",
        plots.line_chart(axes, series),
        markup.paragraph(note, kind="soft") if note else None,
    )


def datums_per_step(run: Run) -> int | None:
    """The size of a batch; None for custom loops, whose batches may differ."""
    return None if run.from_custom_loop else run.config.training.batch


def loss_series(name: str, run: Run, factor: int, colour: int) -> list[Series]:
    """The training loss as a line, held-out losses as points on a line."""
    steps = run.steps()
    step, loss = bin_means(steps["step"].to_numpy(), steps["loss"].to_numpy())
    series = [Series(f"{name}, training", factor * step, loss, colour)]
    for offset, (split, table) in enumerate(run.evaluations().groupby("split", sort=False), 1):
        at, held_out = factor * table["step"].to_numpy(), table["loss"].to_numpy()
        shade = colour + 2 * offset
        series.append(Series(f"{name}, {split}", at, held_out, shade))
        series.append(Series("", at, held_out, shade, "points"))
    return series


# --- neurons --------------------------------------------------------------------------------------


def agreement(found: Comparison) -> Markup:
    """How far the tokens of neurons with the same number agree, by unit, beside chance."""
    heading = "Do neurons of the same number get the same tokens?"
    if not len(found.pairs):
        words = "The runs have no unit in common in which neurons of the same number have tokens."
        return section(heading, markup.paragraph(words))
    columns = [
        Column("unit", lambda row: row.unit, definitions.UNIT),
        Column(
            "n",
            lambda row: markup.integer(row.neurons),
            "Neurons that have named tokens in both runs",
            numeric=True,
        ),
        Column(
            "overlap",
            lambda row: markup.decimals(row.jaccard, 3),
            "Mean Jaccard similarity (0 to 1) of the named tokens of A and B: shared / either",
            numeric=True,
        ),
        Column(
            "by chance",
            lambda row: markup.decimals(row.chance, 3),
            "The same with all other neurons of the unit in B instead of the one of this number",
            numeric=True,
        ),
        Column(
            "difference",
            lambda row: markup.decimals(row.difference, 3),
            "Overlap − by chance",
            numeric=True,
        ),
        Column(
            "95 % CI",
            lambda row: markup.interval(row.low, row.high, three_decimals),
            "95 % bootstrap interval of the mean difference, over neurons",
            numeric=True,
        ),
    ]
    rows = markup.data_table("Named tokens of A and B", columns, rows_of(found.agreement))
    return section(heading, markup.paragraph(correspondence(found)), rows)


def correspondence(found: Comparison) -> str:
    """Whether neuron n of one run is neuron n of the other."""
    if found.same_start:
        return (
            "Both runs started from the same weights, so neuron n of A began as neuron n of B. "
            "Agreement above chance says that both learned similar things there, or that the "
            "initial weights decide."
        )
    return (
        "The runs started from different weights (another seed or model). Neurons of different "
        "seeds do not correspond: neuron n of A is no counterpart of neuron n of B, and agreement "
        "by number should equal chance. It says nothing on whether the models learned the same."
    )


def neurons(found: Comparison, links: Links) -> Markup | None:
    """The pairs of largest overlap."""
    if not len(found.pairs):
        return None
    ordered = found.pairs.sort_values("jaccard", ascending=False, kind="stable")
    shown = ordered.head(PAIRS_SHOWN)
    columns = [
        Column("neuron", lambda row: links.neuron((row.unit, row.group)), definitions.NEURON),
        count("shared", "Tokens that both neurons have"),
        count("tokens", "Named tokens in A", "tokens, A"),
        count("other_tokens", "Named tokens in B", "tokens, B"),
        Column(
            "overlap",
            lambda row: markup.decimals(row.jaccard, 3),
            "Jaccard similarity (0 to 1) of the named tokens of A and B",
            numeric=True,
        ),
        Column(
            "by chance",
            lambda row: markup.decimals(row.chance, 3),
            "Mean Jaccard similarity with all other neurons of the unit in B",
            numeric=True,
        ),
    ]
    caption = f"{len(shown):,} of {len(ordered):,} neurons, largest overlap first"
    table = markup.data_table(caption, columns, rows_of(shown), identity=NEURON_IDENTITY)
    return section("Neurons of the same number", table)


def count(name: str, meaning: str, header: str | None = None) -> Column:
    return Column(header or name, partial(integer_of, name), meaning, numeric=True)


def integer_of(name: str, row: Any) -> str:
    return markup.integer(getattr(row, name))


def three_decimals(value: float) -> str:
    return markup.decimals(value, 3)
