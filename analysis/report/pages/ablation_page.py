"""The chapter on ablation: how many predictions change without each neuron, and of which tokens."""

import pandas as pd
from markupsafe import Markup

from analysis.report.drawing import markup
from analysis.report.drawing.markup import Column, fragment, section
from analysis.report.pages.neuron_table import ratio_text
from analysis.report.pages.report_data import ReportData, rows_of


def ablation(data: ReportData) -> Markup:
    """The content of the chapter."""
    layers, neurons = data.sources["ablate", "layers"], data.sources["ablate", "neurons"]
    lead = markup.paragraph(
        "Next-token predictions of the full model, compared with those of the model with one "
        "neuron ablated. A flip is a position where they differ. Evidence tokens are those that "
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
    return fragment(lead, section("By unit", by_unit), ablated_neurons(data, neurons))


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
        Column(
            "ratio",
            lambda row: ratio_text(row.ratio),
            numeric=True,
            tooltip="Evidence rate / other rate",
        ),
    ]
    num_agreeing = int((table["notable_share"] > table["other_share"]).sum())
    words = (
        f"For {num_agreeing:,} of {len(table):,} neurons, predictions of evidence tokens flip at a "
        "higher rate than others."
    )
    rows = markup.data_table(f"{len(table):,} ablated neurons", columns, rows_of(table))
    return section("By neuron", markup.paragraph(words), rows)
