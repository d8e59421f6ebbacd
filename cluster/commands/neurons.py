"""``ontogeny neurons``: which neurons form clusters, and which are polysemantic."""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from capture.errors import at_least
from cluster.options.analysis import Analysis, Counting, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run, add_skip_damaged
from cluster.options.choices import CLUSTERING_METHODS, CLUSTERING_WEIGHTS
from cluster.options.lifetime import add_lifetime, compute_lifetimes, say_lifetime

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.neurons.grouping import NeuronClusters, NeuronsConfig
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Groups neurons (columns of MLP weights) that the same datums moved more often than chance would have
it. Bootstrap samples of the datums measure how stable each cluster is. The tokens that its neurons
have evidence for name a cluster. A neuron whose tokens form several topics is polysemantic. Tables
go to RUN/analysis/neurons/."""


def add(commands: "Commands") -> None:
    made = add_command(commands, "neurons", run, "Cluster neurons that the same data moved.", TEXT)
    add_run(made)
    text = "default hdbscan"
    made.add_argument("--method", choices=CLUSTERING_METHODS, default="hdbscan", help=text)
    add_number(made, "--clusters", None, "how many; agglomerative only")
    add_number(made, "--min-cluster", 5, "least neurons of an hdbscan cluster")
    add_number(made, "--components", 20, "coordinates of a neuron")
    made.add_argument(
        "--weight",
        choices=CLUSTERING_WEIGHTS,
        default="rows",
        help="entry for a neuron and a datum: number of outlier rows (default), or Σ |shift|",
    )
    made.add_argument(
        "--tokens-weight",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="0 to 1: weight of the tallies' token evidence, beside datums; default 0",
    )
    add_number(made, "--min-rows", 20, "outlier rows that a neuron needs")
    add_number(made, "--bootstraps", 20, "bootstrap samples of the datums")
    add_number(made, "--seed", 0, "seed of the samples and of the map")
    add_number(made, "--rows", 20, "rows shown")
    add_lifetime(made)
    add_skip_damaged(made)
    add_ray(made)
    add_tables(made)
    add_quiet(made, json=True)


def add_number(made: argparse.ArgumentParser, name: str, default: int | None, what: str) -> None:
    text = what if default is None else f"{what}, default {default}"
    made.add_argument(name, type=int, default=default, metavar="N", help=text)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.jobs.question import Question
    from analysis.neurons.grouping import group_neurons, read_outlier_sums, write_neurons
    from cluster.terminal.neuron_tables import show_neurons

    at_least("--rows", arguments.rows, 1)
    config = config_of(arguments)

    def compute(run: "Run", on: "Machines", counting: Counting) -> "NeuronClusters":
        compute_lifetimes(run, counting, wanted=config.lifetime)
        with counting("reading outliers", "rows") as report:
            read = partial(on.run_job, report=report)
            moved = read_outlier_sums(run, read, lifetime=config.lifetime)
        with counting("grouping bootstrap samples", "samples") as report:
            return group_neurons(run, moved, config, report)

    def show(console: "Console", run: "Run", found: "NeuronClusters") -> None:
        show_neurons(console, found, rows=arguments.rows)
        say_lifetime(console, counted=config.lifetime)

    question = Question.of("neurons", config)
    found = Analysis(lambda run: question, compute, write_neurons, show)
    return run_analysis(arguments, console, found)


def config_of(arguments: argparse.Namespace) -> "NeuronsConfig":
    from analysis.neurons.clustering import ClusteringConfig
    from analysis.neurons.grouping import NeuronsConfig

    return NeuronsConfig(
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
        lifetime=arguments.lifetime,
    )
