"""What activations alone say: the study's table of extremes and its three figures.

Shapes: B bin of activations.
"""

import pandas as pd

from analysis.report.drawing import markup, plots
from analysis.report.drawing.markup import Html, element, section, together
from analysis.report.drawing.plots import Axes, Interval, Series
from analysis.report.pages.report_data import Material, each
from analysis.report.pages.token_pages import rank_table

FOCUS, OTHER = 2, 1
"""Colours of what a figure is about, and of what it is compared with."""
FIGURES = {
    1: "The neuron on one token, and on others",
    2: "The same token, in the neuron and its neighbours",
    3: "The neuron on several tokens, and on others",
}


def activations(material: Material) -> Html:
    ranks = material.sources["activations", "ranks"]
    lead = markup.paragraph(
        "What one would find without the record: how active a neuron is where a token stands. If "
        "the tokens that taught it do not stand out here, activations hide what training shows.",
        kind="lead",
    )
    comparisons = material.sources["activations", "comparisons"]
    histograms = material.sources["activations", "histograms"]
    tables = [extremes(material, table) for _, table in ranks.groupby("token_id", sort=False)]
    return together(lead, *figures(comparisons, histograms), *tables)


def extremes(material: Material, table: pd.DataFrame) -> Html:
    heading = f"Neurons of extreme activation on “{table['token'].iloc[0]}”"
    caption = "Of all neurons, those with the lowest and highest mean activation"
    return section(heading, rank_table(table, material.links, caption))


def figures(comparisons: pd.DataFrame, histograms: pd.DataFrame) -> list[Html]:
    """Of each figure medians and quartiles, then the distributions themselves."""
    return [
        section(
            words,
            quartiles(table, words),
            element("div", *distributions(table, histograms), class_="small-multiples"),
        )
        for number, words in FIGURES.items()
        for table in [comparisons[comparisons["figure"] == number]]
        if len(table)
    ]


def name(row, neurons: bool) -> str:
    """What tells a distribution from the others of its figure."""
    return f"neuron {row.neuron}" if neurons else row.token


def quartiles(table: pd.DataFrame, title: str) -> Html:
    neurons = table["neuron"].nunique() > 1
    rows = [
        Interval(name(row, neurons), row.median, row.q25, row.q75, FOCUS if row.focus else OTHER)
        for row in each(table)
    ]
    first = table.iloc[0]
    place = f"on “{first['token']}”" if neurons else f"of {first['unit']} · {first['neuron']}"
    axes = Axes(
        title=f"Activation {place}: median and quartiles",
        x="activation",
        description=title,
        left=130,
        width=520,
        height=plots.rows_height(len(rows)),
    )
    span = plots.interval_bounds(rows, 0.0)
    return plots.intervals(axes, rows, reference=0.0, span=span)


def distributions(table: pd.DataFrame, histograms: pd.DataFrame) -> list[Html]:
    """A small histogram of each, all of one figure over the same bins."""
    neurons = table["neuron"].nunique() > 1
    keys = ["figure", "unit", "neuron", "group"]
    by_key = dict(list(histograms.groupby(keys, sort=False)))
    found = []
    for row in each(table):
        own = by_key.get((row.figure, row.unit, row.neuron, row.token))
        if own is None:
            continue
        title, colour = name(row, neurons), FOCUS if row.focus else OTHER
        axes = Axes(
            title=title,
            x="activation",
            y="share of positions, %",
            description=f"{row.count} positions",
            width=230,
            height=150,
            left=34,
        )
        low_B, share_B = own["low"].to_numpy(), 100 * own["share"].to_numpy()
        series = [Series("", low_B, share_B, colour)]
        found.append(plots.histogram(axes, low_B, own["high"].to_numpy(), series))
    return found
