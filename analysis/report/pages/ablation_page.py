"""The chapter on ablation: how far log-probabilities and predictions change without a neuron."""

from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.measures.agreement import NEARLY_DEAD_NATS, Agreement, by_effect
from analysis.report.drawing import markup
from analysis.report.drawing.markup import Column, fragment, section
from analysis.report.pages import definitions
from analysis.report.pages.report_data import ReportData, rows_of


def ablation(data: ReportData) -> Markup:
    """The content of the chapter."""
    layers, neurons = data.sources["ablate", "layers"], data.sources["ablate", "neurons"]
    lead = markup.paragraph(
        "Next-token predictions of the full model, compared with those of the model with one "
        "neuron ablated: the log-probability of the true next token, and flips, positions where "
        "the most probable token differs. Evidence tokens (notable tokens) are those that "
        "attribution selected for the neuron, from the training record alone.",
        kind="lead",
    )
    columns = [
        Column("unit", lambda row: row.unit, definitions.UNIT),
        Column("neurons", lambda row: markup.integer(row.neurons), "Ablated neurons", numeric=True),
        Column(
            "flipped tokens, mean",
            lambda row: one_decimal(row.flipped_tokens),
            "Different tokens whose predictions flip, mean over the unit's neurons",
            numeric=True,
        ),
        Column(
            "95 % CI of tokens",
            lambda row: markup.interval(row.flipped_low, row.flipped_high, one_decimal),
            definitions.interval_of("the mean number of flipped tokens"),
            numeric=True,
        ),
        Column(
            "in evidence, mean",
            lambda row: share_text(row.notable_share),
            "Share of the flipped tokens that are in the neuron's evidence, mean over neurons, %",
            numeric=True,
        ),
        Column(
            "95 % CI of the share",
            lambda row: markup.interval(row.notable_low, row.notable_high, share_text),
            definitions.interval_of("the mean share"),
            numeric=True,
        ),
    ]
    by_unit = markup.data_table("Means over the ablated neurons", columns, rows_of(layers))
    return fragment(
        lead,
        changes_by_neuron(data, neurons),
        section("Flips by unit", by_unit),
        ablated_neurons(data, neurons),
    )


def one_decimal(value: float) -> str:
    return markup.decimals(value, 1)


def share_text(value: float) -> str:
    return markup.percent(value, 2)


def ablated_neurons(data: ReportData, table: pd.DataFrame) -> Markup:
    """One row per ablated neuron."""
    links = data.links
    columns = [
        Column("neuron", lambda row: links.neuron((row.unit, row.neuron)), definitions.NEURON),
        Column(
            "flips",
            lambda row: markup.integer(row.flips),
            "Positions whose most probable next token changes",
            numeric=True,
        ),
        Column(
            "tokens",
            lambda row: markup.integer(row.flipped_tokens),
            "Different tokens whose predictions flip",
            numeric=True,
        ),
        Column(
            "in evidence",
            lambda row: markup.integer(row.notable_flipped),
            "How many of these tokens are in the neuron's evidence",
            numeric=True,
        ),
        Column(
            "evidence rate",
            lambda row: share_text(row.notable_share),
            "Share of the predictions of evidence tokens that flip, %",
            numeric=True,
        ),
        Column(
            "95 % CI",
            lambda row: markup.interval(row.notable_low, row.notable_high, share_text),
            definitions.interval_of("the evidence rate"),
            numeric=True,
        ),
        Column(
            "other rate",
            lambda row: share_text(row.other_share),
            "Share of the predictions of all other tokens that flip, %",
            numeric=True,
        ),
        Column(
            "95 % CI of other",
            lambda row: markup.interval(row.other_low, row.other_high, share_text),
            definitions.interval_of("the other rate"),
            numeric=True,
        ),
    ]
    caption = f"Flips of {len(table):,} ablated neurons, most evidence first"
    note = markup.paragraph(
        "Flips cannot show whether ablation agrees with the evidence: most tokens in the evidence "
        "are rare, and a model hardly ever predicts a rare token.",
        kind="soft",
    )
    rows = markup.data_table(caption, columns, rows_of(table))
    return section("Flips by neuron", note, rows)


def changes_by_neuron(data: ReportData, table: pd.DataFrame) -> Markup:
    """The verdict over all neurons, and one row per neuron, largest effect first."""
    sentences = Agreement.of(table).sentences("neurons")
    columns = [
        Column("neuron", lambda row: data.links.neuron((row.unit, row.neuron)), definitions.NEURON),
        Column(
            "effect, nats",
            lambda row: four_decimals(row.rms_change),
            definitions.EFFECT,
            numeric=True,
        ),
        Column(
            "state",
            lambda row: "nearly dead" if row.rms_change < NEARLY_DEAD_NATS else "",
            f"Nearly dead: the effect is below {NEARLY_DEAD_NATS} nats",
        ),
        Column(
            "in evidence",
            lambda row: four_decimals(row.notable_change),
            "Mean change of log p where the true next token is in the neuron's evidence, in nats",
            numeric=True,
        ),
        Column(
            "95 % CI",
            lambda row: bounds(row, "notable_change"),
            definitions.interval_of("the change in evidence"),
            numeric=True,
        ),
        Column(
            "n in evidence",
            lambda row: markup.integer(row.notable_positions),
            definitions.POSITIONS,
            numeric=True,
        ),
        Column(
            "elsewhere",
            lambda row: four_decimals(row.other_change),
            "Mean change of log p at all other positions, in nats",
            numeric=True,
        ),
        Column(
            "n elsewhere",
            lambda row: markup.integer(row.other_positions),
            definitions.POSITIONS,
            numeric=True,
        ),
        Column(
            "difference",
            lambda row: four_decimals(row.difference),
            "In evidence − elsewhere, in nats; below zero, ablation agrees with the evidence",
            numeric=True,
        ),
        Column(
            "95 % CI of it",
            lambda row: bounds(row, "difference"),
            definitions.interval_of("the difference"),
            numeric=True,
        ),
    ]
    caption = "Mean change of log p(true next token), nats, largest effect first"
    rows = markup.data_table(caption, columns, rows_of(by_effect(table)))
    return section("Does ablation agree?", *map(markup.paragraph, sentences), rows)


def bounds(row: Any, name: str) -> str:
    """The interval of one column of a row."""
    ends = (getattr(row, f"{name}_low"), getattr(row, f"{name}_high"))
    return markup.interval(*ends, four_decimals)


def four_decimals(value: float) -> str:
    return markup.decimals(value, 4)
