"""``ontogeny neurons``: which neurons belong together, and which are of several minds?"""

import argparse
from functools import partial

import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.neurons.clustering import METHODS, ClusteringConfig
from analysis.neurons.grouping import (
    WEIGHTS,
    Neurons,
    NeuronsConfig,
    group_neurons,
    read_moved,
    write_neurons,
)
from analysis.run.run import Run, open_run
from capture.errors import at_least
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run, add_skip_damaged
from cluster.options.machines import HERE, Machines, machines
from cluster.terminal.progress import counting
from cluster.terminal.tables import data_table, print_skipped, print_table, token_list


def add(inner) -> None:
    text = """\
Neurons (columns of MLP weights) that the same datums moved, more than chance would have it, form
a cluster. Clusters are found again on bootstrap samples of the datums, which says how firm they
are, and named by the tokens that taught their neurons. A neuron whose own tokens fall into several
topics is polysemantic. Tables go to RUN/analysis/neurons/."""
    made = add_command(inner, "neurons", run, "Which neurons belong together?", text)
    add_run(made)
    made.add_argument("--method", choices=METHODS, default="hdbscan", help="default hdbscan")
    add_number(made, "--clusters", None, "how many; agglomerative only")
    add_number(made, "--min-cluster", 5, "least neurons of an hdbscan cluster")
    add_number(made, "--components", 20, "coordinates of a neuron")
    made.add_argument(
        "--weight",
        choices=WEIGHTS,
        default="rows",
        help="what a neuron has of a datum: outlier rows (default) or the distance they moved it",
    )
    made.add_argument(
        "--tokens-weight",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="0 to 1: weight of what tallies say about tokens, beside datums; default 0",
    )
    add_number(made, "--min-rows", 20, "outlier rows that a neuron must have")
    add_number(made, "--bootstraps", 20, "samples of the datums")
    add_number(made, "--seed", 0, "of the samples and the map")
    add_number(made, "--rows", 20, "shown")
    add_skip_damaged(made)
    add_ray(made)
    add_quiet(made)


def add_number(made: argparse.ArgumentParser, name: str, default: int | None, what: str) -> None:
    text = what if default is None else f"{what}, default {default}"
    made.add_argument(name, type=int, default=default, metavar="N", help=text)


def run(arguments: argparse.Namespace, console: Console) -> int:
    at_least("--rows", arguments.rows, 1)
    config = NeuronsConfig(
        clustering=ClusteringConfig(
            method=arguments.method,
            clusters=arguments.clusters,
            min_cluster=arguments.min_cluster,
            components=arguments.components,
            seed=arguments.seed,
        ),
        weight=arguments.weight,
        min_rows=arguments.min_rows,
        tokens_weight=arguments.tokens_weight,
        bootstraps=arguments.bootstraps,
    )
    opened = open_run(arguments.run, skip_damaged=arguments.skip_damaged)
    with machines(arguments) as on:
        neurons(opened, config, console, rows=arguments.rows, quiet=arguments.quiet, on=on)
    print_skipped(console, opened.skipped)
    return 0


def neurons(
    run: Run,
    config: NeuronsConfig,
    console: Console,
    *,
    rows: int,
    quiet: bool,
    on: Machines = HERE,
) -> None:
    """Group the neurons, write the tables, show the first rows of them."""
    with counting(console, "reading outliers", "rows", quiet=quiet) as report:
        moved = read_moved(run, partial(on.run_job, report=report))
    with counting(console, "grouping again", "samples", quiet=quiet) as report:
        found = group_neurons(run, moved, config, report)
    write_neurons(run, found)
    if not quiet:
        show(console, found, rows=rows)


def show(console: Console, found: Neurons, *, rows: int) -> None:
    """The clusters, how firm they are as a whole, and neurons with several topics."""
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
        interval = f"{cluster['low']:.2f}–{cluster['high']:.2f}"
        numbers = [f"{cluster['size']:,}", f"{cluster['stability']:.2f}", interval]
        texts = [escape(token_list(cluster["tokens"], 8)), short_units(cluster["units"])]
        table.add_row(str(cluster["cluster"]), *numbers, *texts)
    print_table(console, "Neurons that the same data moved", table)
    console.print(
        "stability: how much of a cluster comes back when datums are drawn anew (Jaccard, mean;\n"
        "below 0.5 it dissolves, above 0.75 it is firm)."
    )
    if len(clusters) > rows:
        console.print(f"The {rows} largest of {len(clusters)} clusters are shown.")


def show_topics(console: Console, found: Neurons, rows: int) -> None:
    whole, several = found.stability.iloc[0], found.neurons[found.neurons["topics"] > 1]
    if len(several):
        table = data_table("unit", "neuron", "cluster")
        table.add_column("topics among the tokens that taught it")
        for neuron in several.nlargest(rows, "rows").to_dict("records"):
            topics = "  |  ".join(token_list(topic, 5) for topic in neuron["topic_tokens"])
            cluster = str(neuron["cluster"]) if neuron["cluster"] >= 0 else "–"
            table.add_row(neuron["unit"], str(neuron["neuron"]), cluster, escape(topics))
        print_table(console, "Neurons of several minds", table)
    console.print(
        f"{whole['polysemantic']:,} of {whole['neurons']:,} neurons are polysemantic: their own "
        f"tokens form several topics.\nWith tokens dealt out at random it would be "
        f"{whole['polysemantic_by_chance']:,}."
    )


def short_units(units: list[str]) -> str:
    """layers.2.linear1.weight → 2.linear1; the three most frequent."""
    names = [name.removeprefix("layers.").removesuffix(".weight") for name in units]
    return escape(token_list(names, 3))
