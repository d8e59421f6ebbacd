"""Tables of ``ontogeny neurons``: clusters, their stability, and polysemantic neurons."""

import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.neurons.grouping import NeuronClusters
from cluster.terminal.tables import data_table, print_table, token_list


def show_neurons(console: Console, found: NeuronClusters, *, rows: int) -> None:
    """Print the clusters, their stability, and polysemantic neurons."""
    whole = found.stability.iloc[0]
    if whole["clusters"]:
        show_clusters(console, found.clusters, rows)
        console.print(
            f"Groupings of bootstrap samples agree with this one to {whole['agreement']:.2f} "
            f"[{whole['low']:.2f}, {whole['high']:.2f}] (adjusted Rand: 1 fully, 0 by chance).",
            markup=False,
        )
    console.print(
        f"{1 - whole['clustered']:.0%} of {whole['neurons']:,} neurons are in no cluster; "
        f"{whole['left_out']:,} more had too few outlier rows."
    )
    show_topics(console, found, rows)


def show_clusters(console: Console, clusters: pd.DataFrame, rows: int) -> None:
    table = data_table("cluster", "neurons", "stability", "95 %")
    table.add_column("tokens that its neurons share, best first")
    table.add_column("units")
    for cluster in clusters.head(rows).to_dict("records"):
        interval = f"{cluster['low']:.2f} to {cluster['high']:.2f}"
        numbers = [f"{cluster['size']:,}", f"{cluster['stability']:.2f}", interval]
        texts = [escape(token_list(cluster["tokens"], 8)), short_units(cluster["units"])]
        table.add_row(str(cluster["cluster"]), *numbers, *texts)
    print_table(console, "Neurons that the same data moved", table)
    console.print(
        "stability: mean overlap (Jaccard index) with the best matching cluster of each bootstrap\n"
        "sample; below 0.5 unstable, above 0.75 stable."
    )
    if len(clusters) > rows:
        console.print(f"The {rows} largest of {len(clusters)} clusters are shown.")


def show_topics(console: Console, found: NeuronClusters, rows: int) -> None:
    whole, several = found.stability.iloc[0], found.neurons[found.neurons["topics"] > 1]
    if len(several):
        table = data_table("unit", "neuron", "cluster")
        table.add_column("topics among its tokens")
        for neuron in several.nlargest(rows, "rows").to_dict("records"):
            topics = "  |  ".join(token_list(topic, 5) for topic in neuron["topic_tokens"])
            cluster = str(neuron["cluster"]) if neuron["cluster"] >= 0 else "–"
            table.add_row(neuron["unit"], str(neuron["neuron"]), cluster, escape(topics))
        print_table(console, "Polysemantic neurons", table)
    console.print(
        f"{whole['polysemantic']:,} of {whole['neurons']:,} neurons are polysemantic: their own "
        f"tokens form several topics.\nWith tokens dealt out at random it would be "
        f"{whole['polysemantic_by_chance']:,}."
    )


def short_units(units: list[str]) -> str:
    """The three most frequent units, each as in layers.2.linear1.weight → 2.linear1."""
    names = [name.removeprefix("layers.").removesuffix(".weight") for name in units]
    return escape(token_list(names, 3))
