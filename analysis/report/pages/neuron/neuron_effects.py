"""The parts of a neuron's page that compare its evidence with the trained model.

They show what changes when the neuron is ablated, and how well each kind of evidence predicts it.
"""

import math

import pandas as pd
from markupsafe import Markup

from analysis.measures.agreement import MIN_POSITIONS, NEARLY_DEAD_NATS
from analysis.report.drawing import markup, plots
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import Column, element, fragment, section
from analysis.report.drawing.plots import Interval
from analysis.report.pages import definitions
from analysis.report.pages.report_data import CONTEXTS_SHOWN, ReportData, rows_of
from analysis.report.pages.website import Links, Neuron, command_note, token_text

FLIPS_SHOWN = 20
TARGETS_SHOWN = 16
CHANGES_SHOWN = 12
REPLACEMENT_PHRASES = {
    "zero": "With the activation set to zero",
    "mean": "With the activation set to its mean",
    "resample": "With activations resampled from other positions",
}
"""Kind of ablation → the beginning of a sentence."""
EVIDENCE, OTHER = 2, 1
"""Colours of tokens in the neuron's evidence, and of other tokens."""


# --- ablation -------------------------------------------------------------------------------------


def ablation(data: ReportData, neuron: Neuron, links: Links) -> Markup:
    """Changes of predictions and of log-probabilities when the neuron is ablated."""
    heading = "Effect of ablating the neuron"
    if "ablate" in data.sources.missing:
        note = command_note("Not computed. Run:", data.sources.missing["ablate"])
        return section(heading, note)
    ablated = data.ablated.get(neuron)
    changes = data.changes_by_neuron.get(neuron)
    if ablated is None and changes is None:
        unit, number = neuron
        command = markup.code(f"ontogeny ablate … --only {unit}:{number}")
        words = "This neuron was not ablated. Select it with "
        return section(heading, markup.paragraph(words, command, "."))
    return section(
        heading,
        ablation_summary(ablated) if ablated is not None else None,
        flips(data.flips_by_neuron.get(neuron), links),
        frequent_changes(data.moves_by_neuron.get(neuron)),
        contexts(data.contexts_by_neuron.get(neuron)),
        target_changes(data, neuron, changes) if changes is not None else None,
    )


def ablation_summary(row: pd.Series) -> Markup:
    """The change of the log-probability and the flips, in a few sentences."""
    sample = "datums that moved it" if row.attributed else "randomly drawn datums"
    words = ""
    if row.rms_change < NEARLY_DEAD_NATS:
        words += (
            "This neuron is nearly dead: without it, log-probabilities change by only "
            f"{markup.significant(row.rms_change)} nats (root mean square). "
        )
    if not math.isnan(row.change):
        interval = markup.interval(row.change_low, row.change_high, four_decimals)
        words += (
            f"{REPLACEMENT_PHRASES[row.kind]}, the mean log-probability of the target token "
            f"changes by {four_decimals(row.change)} nats"
            + (f" (95 % CI {interval}). " if interval else ". ")
            + notable_changes(row)
        )
    words += (
        f"Of {row.positions:,} predictions on {row.datums:,} {sample}, {row.flips:,} change. These "
        f"flips concern {row.flipped_tokens:,} tokens, {row.notable_flipped:,} of which are in the "
        "neuron's evidence."
    )
    return markup.paragraph(words)


def notable_changes(row: pd.Series) -> str:
    """How the change at targets in the evidence compares with the change at others."""
    if row.notable_positions < MIN_POSITIONS:
        count = markup.integer(row.notable_positions)
        return f"Targets in the evidence occur at {count} scored positions, too few to evaluate. "
    bounds = (row.notable_change_low, row.notable_change_high)
    interval = markup.interval(*bounds, four_decimals)
    return (
        f"It changes by {four_decimals(row.notable_change)} nats where it is in the evidence ("
        + (f"95 % CI {interval}, " if interval else "")
        + f"n = {row.notable_positions:,} positions) and by {four_decimals(row.other_change)} "
        f"elsewhere (n = {row.other_positions:,}). "
    )


def four_decimals(value: float) -> str:
    return markup.decimals(value, 4)


def one_decimal_percent(share: float) -> str:
    return markup.percent(share, 1)


def frequent_changes(table: pd.DataFrame | None) -> Markup | None:
    """The most frequent pairs of a prediction and what replaces it."""
    if table is None:
        return None
    items = [
        element("li", token_text(row.before), " → ", token_text(row.after), f" × {row.count:,}")
        for row in rows_of(table.head(CHANGES_SHOWN))
    ]
    words = markup.paragraph(
        "Most frequent flips: prediction of the full model → prediction with the neuron ablated.",
        kind="soft",
    )
    return fragment(words, element("ul", *items, class_="flips"))


def flips(table: pd.DataFrame | None, links: Links) -> Markup | None:
    """The tokens whose predictions flip most often.

    Tokens at fewer than ``MIN_POSITIONS`` come last, because their rates are noisy.
    """
    if table is None:
        return None
    is_frequent = table["count"] >= MIN_POSITIONS
    shown = pd.concat([table[is_frequent], table[~is_frequent]]).head(FLIPS_SHOWN)
    columns = [
        Column("token", lambda row: links.token(row.token_id, row.token), definitions.TOKEN),
        Column(
            "flips",
            lambda row: markup.integer(row.flips),
            "Positions where only one of the full and the ablated model predicts the token",
            numeric=True,
        ),
        Column(
            "predictions",
            lambda row: markup.integer(row.count),
            "Positions where at least one of the two models predicts the token",
            numeric=True,
        ),
        Column(
            "flip rate",
            lambda row: one_decimal_percent(row.proportion),
            "Flips / predictions, %",
            numeric=True,
        ),
        Column(
            "95 % CI",
            lambda row: markup.interval(row.low, row.high, one_decimal_percent),
            "95 % interval of the flip rate, %",
            numeric=True,
        ),
        Column(
            "in evidence",
            lambda row: "yes" if row.notable else "",
            "Yes: attribution selected the token for the neuron",
        ),
    ]
    caption = f"Tokens whose predictions flip, {len(shown)} of {len(table)}"
    return markup.data_table(caption, columns, rows_of(shown), identity="flips")


def contexts(table: pd.DataFrame | None) -> Markup | None:
    """Passages with a flip. Different tokens alternate, so that none fills the list."""
    if table is None:
        return None
    distinct = table.drop_duplicates("context")
    repetition = distinct.groupby("token", sort=False).cumcount()
    ordered = distinct.assign(repetition=repetition).sort_values("repetition", kind="stable")
    items = [
        element("li", element("blockquote", context_snippet(row)))
        for row in rows_of(ordered.head(CONTEXTS_SHOWN))
    ]
    legend = markup.paragraph(
        "Flips in context. Marks show the predictions of the ",
        element("mark", element("del", "full"), " ", element("ins", "ablated")),
        " model; the text that follows is the true continuation.",
        kind="soft",
    )
    return fragment(legend, element("ul", *items, class_="passages"))


def context_snippet(row) -> Markup:
    """The context with its "(before after)" marked."""
    changed = f"({row.before} {row.after})"
    left, found, right = row.context.partition(changed)
    if not found:
        return fragment(row.context)
    mark = element("mark", element("del", row.before), " ", element("ins", row.after))
    return fragment(left, mark, right)


def target_changes(data: ReportData, neuron: Neuron, table: pd.DataFrame) -> Markup:
    """A chart of the target tokens whose log-probability changes most."""
    evidence = data.tokens_by_neuron.get(neuron)
    evidence_ids = set() if evidence is None else set(evidence["token_id"])
    frequent = table[table["count"] >= MIN_POSITIONS]
    candidates = frequent if len(frequent) else table
    order = candidates["change"].abs().sort_values(ascending=False, kind="stable").index
    shown = candidates.loc[order].head(TARGETS_SHOWN).sort_values("change", kind="stable")
    rows = [
        Interval(row.token, row.change, row.low, row.high, colour)
        for row in rows_of(shown)
        for colour in [EVIDENCE if row.token_id in evidence_ids else OTHER]
    ]
    axes = Axes(
        title="Change of target log-probability under ablation",
        x="mean change of log p(target), nats",
        description="The targets whose log-probability changes most, with 95 % intervals.",
        left=130,
        width=520,
    )
    chart = plots.interval_chart(axes, rows, reference=0.0)
    return fragment(chart, legend("tokens in the evidence", "other tokens"))


def legend(evidence: str, other: str) -> Markup:
    """What the two colours mean."""
    parts = [
        fragment(element("span", class_=f"key s{colour}"), f" {words}")
        for colour, words in ((EVIDENCE, evidence), (OTHER, other))
    ]
    return markup.paragraph(fragment(*parts, separator="\u2003"), kind="soft")


# --- faithfulness ---------------------------------------------------------------------------------


def faithfulness(data: ReportData, neuron: Neuron) -> Markup | None:
    """A table of how well each kind of evidence predicts the effect of ablating the neuron."""
    table = data.faithfulness_by_neuron.get(neuron)
    if table is None:
        return None
    columns = [
        Column("evidence", lambda row: row.evidence, "What ranks the tokens of the neuron"),
        Column(
            "AUC",
            lambda row: markup.decimals(row.auc, 3),
            "Probability (0 to 1) that an affected token ranks above another one; 0.5 is chance",
            numeric=True,
        ),
        Column(
            "precision",
            lambda row: markup.percent(row.precision),
            "Share of affected tokens among those ranked highest, five by default, %",
            numeric=True,
        ),
    ]
    words = (
        "Each kind of evidence ranks all tokens. The ground truth is the set of affected tokens: "
        "those whose log-probability changes most when the neuron is ablated. AUC 0.5 is chance, "
        "1 is perfect."
    )
    ordered = rows_of(table.sort_values("auc", ascending=False, kind="stable"))
    caption = "Evidence against ablation effects, highest AUC first"
    return section(
        "Does the evidence predict the ablation effect?",
        markup.paragraph(words),
        markup.data_table(caption, columns, ordered),
    )
