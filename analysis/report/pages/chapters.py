"""The chapters that set neurons side by side: clusters, silencing, faithfulness.

Activations have a file of their own.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis.report.drawing import markup, plots
from analysis.report.drawing.markup import Column, Html, element, section, together
from analysis.report.drawing.plots import NUM_COLOURS, Axes, Interval, Point
from analysis.report.pages.activations_page import activations
from analysis.report.pages.neuron_table import times
from analysis.report.pages.report_data import Material, each
from analysis.report.pages.website import Page, command_note, neuron_key, token_text

LONE, BASELINE = 0, 0
"""Colour of neurons without a cluster, and of evidence that needs no record."""


def chapters(material: Material) -> list[Page]:
    return [
        chapter(material, "clusters.html", "Clusters of neurons", "neurons", clusters),
        chapter(material, "silencing.html", "Silencing neurons", "ablate", silencing),
        chapter(material, "faithfulness.html", "Faithfulness", "faithfulness", faithfulness),
        chapter(material, "activations.html", "Activations", "activations", activations),
    ]


def chapter(
    material: Material, key: str, title: str, job: str, fill: Callable[[Material], Html]
) -> Page:
    """A page of one job's tables, or the command that makes them."""
    missing = material.sources.missing.get(job)
    body = command_note("Not computed:", missing) if missing else fill(material)
    return Page(key, title, together(element("h1", title), body), key)


# --- clusters -------------------------------------------------------------------------------------


def clusters(material: Material) -> Html:
    neurons = material.sources["neurons", "neurons"]
    table = material.sources["neurons", "clusters"]
    lone = int((neurons["cluster"] < 0).sum())
    lead = (
        f"{len(neurons):,} neurons by the data that moved them: {len(table)} clusters, "
        f"{lone:,} neurons in none. Neurons taught by the same data lie near each other."
    )
    return together(
        markup.paragraph(lead, kind="lead"),
        cluster_map(material, neurons),
        cluster_table(table),
        members(material, neurons),
    )


def cluster_map(material: Material, neurons: pd.DataFrame) -> Html:
    shown = neurons.dropna(subset=["x", "y"])
    points = [
        Point(row.x, row.y, colour(row.cluster), point_name(row), link(material, row))
        for row in each(shown.sort_values("cluster"))
    ]
    middles = shown[shown["cluster"] >= 0].groupby("cluster")[["x", "y"]].median().reset_index()
    labels = [Point(row.x, row.y, 0, str(row.cluster)) for row in each(middles)]
    axes = Axes(
        title="Neurons by the data that moved them",
        description="A map of neurons; its clusters, with their neurons, stand in the lists below.",
        width=760,
        height=560,
    )
    words = "Numbers name clusters; grey neurons belong to none. Only nearness has a meaning."
    return together(plots.scatter(axes, points, labels), markup.paragraph(words, kind="soft"))


def colour(number: int) -> int:
    """Colours recur; the numbers on the map tell clusters apart."""
    return LONE if number < 0 else 1 + number % NUM_COLOURS


def point_name(row) -> str:
    home = "no cluster" if row.cluster < 0 else f"cluster {row.cluster}"
    return f"{row.unit} · {row.neuron}, {home}"


def link(material: Material, row) -> str:
    neuron = (row.unit, row.neuron)
    return neuron_key(neuron) if neuron in material.links.neurons else ""


def cluster_table(table: pd.DataFrame) -> Html:
    columns = [
        Column("cluster", lambda row: row.cluster, numeric=True),
        Column("neurons", lambda row: markup.whole(row.size), numeric=True),
        Column("tokens that tell it apart", lambda row: token_list(row.tokens)),
        Column(
            "stability",
            lambda row: markup.decimals(row.stability),
            numeric=True,
            explained="Mean overlap (Jaccard) with the cluster found again in resampled data",
        ),
        Column("95 % from", lambda row: markup.decimals(row.low), numeric=True),
        Column("to", lambda row: markup.decimals(row.high), numeric=True),
        Column("units", lambda row: unit_list(row.units)),
    ]
    rows = each(table.sort_values("size", ascending=False, kind="stable"))
    return section("The clusters", markup.data_table("Largest first", columns, rows))


def token_list(tokens: np.ndarray) -> Html:
    return together(*(token_text(token) for token in tokens), between=" ")


def unit_list(units: np.ndarray) -> Html:
    """Without what all names of weights share: "0.linear1, 2.linear2"."""
    names = (unit.removeprefix("layers.").removesuffix(".weight") for unit in units)
    return element("span", ", ".join(names), class_="units")


def members(material: Material, neurons: pd.DataFrame) -> Html:
    """The neurons of each cluster, folded away."""
    lists = []
    for number, table in neurons[neurons["cluster"] >= 0].groupby("cluster"):
        pairs = zip(table["unit"], table["neuron"].tolist(), strict=True)
        items = [element("li", material.links.neuron(pair)) for pair in pairs]
        name = element("summary", f"Cluster {number}: {len(table):,} neurons")
        lists.append(element("details", name, element("ul", *items)))
    return section("Their neurons", *lists)


# --- silencing ------------------------------------------------------------------------------------


def silencing(material: Material) -> Html:
    layers, neurons = material.sources["ablate", "layers"], material.sources["ablate", "neurons"]
    lead = markup.paragraph(
        "Each neuron was silenced, and the model's next-token predictions compared. Notable "
        "tokens are those that attribution had named from the training data alone.",
        kind="lead",
    )
    columns = [
        Column("unit", lambda row: row.unit),
        Column("neurons", lambda row: markup.whole(row.neurons), numeric=True),
        Column("flipped tokens, mean", lambda row: one_place(row.flipped_tokens), numeric=True),
        Column("95 %", lambda row: markup.between(row.flipped_low, row.flipped_high, one_place)),
        Column("of them notable, mean", lambda row: share(row.notable_share), numeric=True),
        Column("95 %", lambda row: markup.between(row.notable_low, row.notable_high, share)),
    ]
    by_unit = markup.data_table("Means over the silenced neurons", columns, each(layers))
    return together(lead, section("By unit", by_unit), silenced(material, neurons))


def one_place(value: float) -> str:
    return markup.decimals(value, 1)


def share(value: float) -> str:
    return markup.percent(value, 2)


def silenced(material: Material, table: pd.DataFrame) -> Html:
    links = material.links
    columns = [
        Column("neuron", lambda row: links.neuron((row.unit, row.neuron))),
        Column("flips", lambda row: markup.whole(row.flips), numeric=True),
        Column("tokens", lambda row: markup.whole(row.flipped_tokens), numeric=True),
        Column("notable", lambda row: markup.whole(row.notable_flipped), numeric=True),
        Column("they flip", lambda row: share(row.notable_share), numeric=True),
        Column("95 %", lambda row: markup.between(row.notable_low, row.notable_high, share)),
        Column("others flip", lambda row: share(row.other_share), numeric=True),
        Column("95 %", lambda row: markup.between(row.other_low, row.other_high, share)),
        Column("ratio", lambda row: times(row.ratio), numeric=True),
    ]
    agree = int((table["notable_share"] > table["other_share"]).sum())
    words = (
        f"{agree:,} of {len(table):,} neurons flip the tokens that taught them more often than "
        "other tokens."
    )
    rows = markup.data_table(f"{len(table):,} silenced neurons", columns, each(table))
    return section("By neuron", markup.paragraph(words), rows)


# --- faithfulness ---------------------------------------------------------------------------------


def faithfulness(material: Material) -> Html:
    scores = material.sources["faithfulness", "scores"]
    lead = markup.paragraph(
        "Does evidence from training foretell what a neuron does? Each kind of evidence ranks all "
        "tokens for a neuron; silencing the neuron says which tokens really depend on it.",
        kind="lead",
    )
    reading = markup.paragraph(
        "AUC is the chance that a token which silencing moves most is ranked above one that it "
        "does not: 0.5 is guessing. Precision is the share of such tokens among the first five. "
        "Grey: baselines, which need no record of training, and what half of the text says "
        "about the other half, for the truth is noisy too. Bars are 95 % intervals over neurons.",
        kind="soft",
    )
    return together(
        lead,
        reading,
        agreement_plots(scores),
        section("The figures", score_table(scores)),
    )


def agreement_plots(scores: pd.DataFrame) -> Html:
    """One plot a unit, all with the same scale and the same order: best on the whole first."""
    mean = scores.groupby("evidence")["auc"].transform("mean")
    ordered = scores.assign(mean=mean).sort_values("mean", ascending=False, kind="stable")
    rows = {
        unit: [agreement(row) for row in each(ordered[ordered["unit"] == unit])]
        for unit in dict.fromkeys(scores["unit"])
    }
    span = plots.interval_bounds([row for part in rows.values() for row in part], 0.5)
    panels = [agreement_plot(unit, part, span) for unit, part in rows.items()]
    return element("div", *panels, class_="small-multiples")


def agreement(row) -> Interval:
    colour = BASELINE if row.baseline else 1
    return Interval(row.evidence, row.auc, row.auc_low, row.auc_high, colour)


def agreement_plot(unit: str, rows: list[Interval], span: tuple[float, float]) -> Html:
    axes = Axes(
        title=unit,
        x="AUC",
        description=f"AUC of each kind of evidence for {unit}, with 95 % intervals.",
        width=480,
        height=plots.rows_height(len(rows)),
        left=210,
    )
    return plots.intervals(axes, rows, reference=0.5, span=span)


def score_table(scores: pd.DataFrame) -> Html:
    columns = [
        Column("unit", lambda row: row.unit),
        Column("evidence", lambda row: row.evidence),
        Column("background", lambda row: row.background),
        Column("statistic", lambda row: row.select),
        Column("baseline", lambda row: "yes" if row.baseline else ""),
        Column("neurons", lambda row: markup.whole(row.neurons), numeric=True),
        Column("AUC", lambda row: markup.decimals(row.auc, 3), numeric=True),
        Column("95 %", lambda row: markup.between(row.auc_low, row.auc_high, markup.decimals)),
        Column("precision", lambda row: markup.decimals(row.precision, 3), numeric=True),
        Column(
            "95 %",
            lambda row: markup.between(row.precision_low, row.precision_high, markup.decimals),
        ),
    ]
    return markup.data_table("By unit and kind of evidence", columns, each(scores))
