"""The chapter on activations: neurons of extreme activation, and how activations are distributed.

Shapes: B bin of activations.
"""

from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.report.drawing import markup, plots
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import element, fragment, section
from analysis.report.drawing.plots import Interval, Series
from analysis.report.pages.report_data import ReportData, rows_of
from analysis.report.pages.token_pages import rank_table

FOCUS, OTHER = 2, 1
"""Colours of the distribution in focus, and of those it is compared with."""
FIGURES = {
    1: "One neuron: one token against other tokens",
    2: "One token: one neuron against neighbouring neurons",
    3: "One neuron: several of its tokens against other tokens",
}
"""Number of a comparison → its heading."""


def activations(data: ReportData) -> Markup:
    """The content of the chapter."""
    ranks = data.sources["activations", "ranks"]
    lead = markup.paragraph(
        "Mean activation of neurons on each token, as a baseline that needs no training record. "
        "If the tokens in a neuron's evidence do not stand out here, activations alone do not "
        "show them.",
        kind="lead",
    )
    comparisons = data.sources["activations", "comparisons"]
    histograms = data.sources["activations", "histograms"]
    tables = [extreme_neurons(data, table) for _, table in ranks.groupby("token_id", sort=False)]
    return fragment(lead, *figures(comparisons, histograms), *tables)


def extreme_neurons(data: ReportData, table: pd.DataFrame) -> Markup:
    heading = f"Neurons with extreme activation on “{table['token'].iloc[0]}”"
    caption = "Neurons with the lowest and highest mean activation"
    return section(heading, rank_table(table, data.links, caption))


def figures(comparisons: pd.DataFrame, histograms: pd.DataFrame) -> list[Markup]:
    """Return a section for each comparison: a chart of quartiles, then its groups' histograms."""
    return [
        section(
            heading,
            quartiles(table, heading),
            element("div", *distributions(table, histograms), class_="small-multiples"),
        )
        for number, heading in FIGURES.items()
        for table in [comparisons[comparisons["figure"] == number]]
        if len(table)
    ]


def distribution_name(row: Any, *, by_neuron: bool) -> str:
    """What distinguishes a distribution within its comparison."""
    return f"neuron {row.neuron}" if by_neuron else row.token


def quartiles(table: pd.DataFrame, description: str) -> Markup:
    by_neuron = table["neuron"].nunique() > 1
    rows = [
        Interval(
            distribution_name(row, by_neuron=by_neuron),
            row.median,
            row.q25,
            row.q75,
            FOCUS if row.focus else OTHER,
        )
        for row in rows_of(table)
    ]
    first = table.iloc[0]
    subject = f"on “{first['token']}”" if by_neuron else f"of {first['unit']} · {first['neuron']}"
    axes = Axes(
        title=f"Activation {subject}: median and quartiles",
        x="activation",
        description=description,
        left=130,
        width=520,
    )
    return plots.interval_chart(axes, rows, reference=0.0)


def distributions(table: pd.DataFrame, histograms: pd.DataFrame) -> list[Markup]:
    """A small histogram of each distribution; those of one comparison share their bins."""
    by_neuron = table["neuron"].nunique() > 1
    keys = ["figure", "unit", "neuron", "group"]
    by_key = dict(list(histograms.groupby(keys, sort=False)))
    found = []
    for row in rows_of(table):
        own = by_key.get((row.figure, row.unit, row.neuron, row.token))
        if own is None:
            continue
        axes = Axes(
            title=distribution_name(row, by_neuron=by_neuron),
            x="activation",
            y="share of positions, %",
            description=f"{row.count} positions",
            width=230,
            height=150,
            left=34,
        )
        low_B, share_B = own["low"].to_numpy(), 100 * own["share"].to_numpy()
        series = [Series("", low_B, share_B, FOCUS if row.focus else OTHER)]
        found.append(plots.histogram(axes, low_B, own["high"].to_numpy(), series))
    return found
