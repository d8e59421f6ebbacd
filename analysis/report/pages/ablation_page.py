"""The chapter on ablation: how far log-probabilities and predictions change without a neuron."""

from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.measures.agreement import NEARLY_DEAD_NATS, Agreement, by_effect
from analysis.report.drawing import markup
from analysis.report.drawing.markup import Column, fragment, section
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
        Column("unit", lambda row: row.unit),
        Column("neurons", lambda row: markup.integer(row.neurons), numeric=True),
        Column("flipped tokens, mean", lambda row: one_decimal(row.flipped_tokens), numeric=True),
        Column(
            "95 % CI", lambda row: markup.interval(row.flipped_low, row.flipped_high, one_decimal)
        ),
        Column("in evidence, mean", lambda row: share_text(row.notable_share), numeric=True),
        Column(
            "95 % CI", lambda row: markup.interval(row.notable_low, row.notable_high, share_text)
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
        Column("neuron", lambda row: links.neuron((row.unit, row.neuron))),
        Column("flips", lambda row: markup.integer(row.flips), numeric=True),
        Column(
            "tokens",
            lambda row: markup.integer(row.flipped_tokens),
            numeric=True,
            tooltip="Different tokens whose predictions flip",
        ),
        Column("in evidence", lambda row: markup.integer(row.notable_flipped), numeric=True),
        Column(
            "evidence rate",
            lambda row: share_text(row.notable_share),
            numeric=True,
            tooltip="Share of the predictions of evidence tokens that flip",
        ),
        Column(
            "95 % CI", lambda row: markup.interval(row.notable_low, row.notable_high, share_text)
        ),
        Column(
            "other rate",
            lambda row: share_text(row.other_share),
            numeric=True,
            tooltip="Share of the predictions of all other tokens that flip",
        ),
        Column("95 % CI", lambda row: markup.interval(row.other_low, row.other_high, share_text)),
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
        Column("neuron", lambda row: data.links.neuron((row.unit, row.neuron))),
        Column(
            "effect, nats",
            lambda row: four_decimals(row.rms_change),
            numeric=True,
            tooltip="Root mean square change of log p(true next token)",
        ),
        Column("", lambda row: "nearly dead" if row.rms_change < NEARLY_DEAD_NATS else ""),
        Column("in evidence", lambda row: four_decimals(row.notable_change), numeric=True),
        Column("95 % CI", lambda row: bounds(row, "notable_change")),
        Column("n", lambda row: markup.integer(row.notable_positions), numeric=True),
        Column("elsewhere", lambda row: four_decimals(row.other_change), numeric=True),
        Column("n", lambda row: markup.integer(row.other_positions), numeric=True),
        Column("difference", lambda row: four_decimals(row.difference), numeric=True),
        Column("95 % CI", lambda row: bounds(row, "difference")),
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
