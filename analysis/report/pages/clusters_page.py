"""The chapter on clusters: neurons that the same datums moved, on a map and in lists."""

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from analysis.report.drawing import markup, plots
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import Column, element, fragment, section
from analysis.report.drawing.plots import NUM_COLOURS, Point
from analysis.report.pages.report_data import ReportData, rows_of
from analysis.report.pages.website import neuron_key, token_text

UNCLUSTERED = 0
"""Colour of neurons that are in no cluster."""


def clusters(data: ReportData) -> Markup:
    """The content of the chapter."""
    neurons = data.sources["neurons", "neurons"]
    table = data.sources["neurons", "clusters"]
    num_unclustered = int((neurons["cluster"] < 0).sum())
    lead = (
        f"{len(neurons):,} neurons, clustered by the datums that moved them: {len(table)} "
        f"clusters, {num_unclustered:,} neurons in no cluster. Neurons moved by the same datums "
        "are near each other on the map."
    )
    return fragment(
        markup.paragraph(lead, kind="lead"),
        cluster_map(data, neurons),
        cluster_table(table),
        cluster_members(data, neurons),
    )


def cluster_map(data: ReportData, neurons: pd.DataFrame) -> Markup:
    """The neurons in the plane, coloured by cluster."""
    shown = neurons.dropna(subset=["x", "y"])
    points = [
        Point(row.x, row.y, cluster_colour(row.cluster), point_name(row), neuron_link(data, row))
        for row in rows_of(shown.sort_values("cluster"))
    ]
    centres = shown[shown["cluster"] >= 0].groupby("cluster")[["x", "y"]].median().reset_index()
    labels = [Point(row.x, row.y, 0, str(row.cluster)) for row in rows_of(centres)]
    axes = Axes(
        title="Neurons by the datums that moved them",
        description="A map of neurons. The lists below have the neurons of each cluster.",
        width=760,
        height=560,
    )
    words = (
        "t-SNE map. Numbers are clusters; grey neurons are in no cluster. Distances between "
        "clusters have no meaning."
    )
    return fragment(plots.scatter(axes, points, labels), markup.paragraph(words, kind="soft"))


def cluster_colour(cluster: int) -> int:
    """Colours repeat; the numbers on the map distinguish clusters of one colour."""
    return UNCLUSTERED if cluster < 0 else 1 + cluster % NUM_COLOURS


def point_name(row: Any) -> str:
    cluster = "no cluster" if row.cluster < 0 else f"cluster {row.cluster}"
    return f"{row.unit} · {row.neuron}, {cluster}"


def neuron_link(data: ReportData, row: Any) -> str:
    """Key of the neuron's page; "" if it has none."""
    neuron = (row.unit, row.neuron)
    return neuron_key(neuron) if neuron in data.links.neurons else ""


def cluster_table(table: pd.DataFrame) -> Markup:
    columns = [
        Column("cluster", lambda row: row.cluster, "Number of the cluster, from 0", numeric=True),
        Column(
            "neurons", lambda row: markup.integer(row.size), "Neurons in the cluster", numeric=True
        ),
        Column(
            "characteristic tokens",
            lambda row: token_list(row.tokens),
            "Target tokens that the outliers of the cluster have more often than those of others",
        ),
        Column(
            "stability",
            lambda row: markup.decimals(row.stability),
            "Mean Jaccard similarity (0 to 1) with the best match in bootstrap samples of datums",
            numeric=True,
        ),
        Column(
            "95 % CI low",
            lambda row: markup.decimals(row.low),
            "Lower end of the 95 % interval of the stability",
            numeric=True,
        ),
        Column(
            "high",
            lambda row: markup.decimals(row.high),
            "Upper end of the 95 % interval of the stability",
            numeric=True,
        ),
        Column("units", lambda row: unit_list(row.units), "Units with neurons in the cluster"),
    ]
    rows = rows_of(table.sort_values("size", ascending=False, kind="stable"))
    return section("Clusters", markup.data_table("Largest cluster first", columns, rows))


def token_list(tokens: np.ndarray) -> Markup:
    return fragment(*(token_text(token) for token in tokens), separator=" ")


def unit_list(units: np.ndarray) -> Markup:
    """Names of units without what all share: "0.linear1, 2.linear2"."""
    names = (unit.removeprefix("layers.").removesuffix(".weight") for unit in units)
    return element("span", ", ".join(names), class_="units")


def cluster_members(data: ReportData, neurons: pd.DataFrame) -> Markup:
    """The neurons of each cluster, in lists that are closed at first."""
    lists = []
    for number, table in neurons[neurons["cluster"] >= 0].groupby("cluster"):
        pairs = zip(table["unit"], table["neuron"].tolist(), strict=True)
        items = [element("li", data.links.neuron(pair)) for pair in pairs]
        name = element("summary", f"Cluster {number}: {len(table):,} neurons")
        lists.append(element("details", name, element("ul", *items)))
    return section("Neurons of each cluster", *lists)
