"""Which neurons belong together, because the same data taught them, and which are of several minds.

1. Sum the outlier rows of every MLP neuron (a column) by datum and by target token
   (``analysis.neurons.datums``).
2. Find clusters of neurons that the same datums move (``analysis.neurons.clustering``).
3. Do it again on bootstrap samples of the datums, to see which clusters stay
   (``analysis.neurons.stability``).
4. Name the clusters by the tokens that their neurons own, and find neurons whose own tokens fall
   into several topics (``analysis.neurons.topics``).

Shapes: G neuron with enough rows, N datum, V token of the vocabulary, D coordinate.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from analysis.jobs.job import Runner
from analysis.jobs.tables import write_tables
from analysis.measures.association import associations
from analysis.neurons.clustering import (
    ClusteringConfig,
    Clusters,
    coordinates,
    find_clusters,
    plane,
)
from analysis.neurons.datums import Moved, MovedNeurons, mlp_units
from analysis.neurons.stability import bootstrap, draw
from analysis.neurons.tables import TABLES, cluster_table, neuron_table, stability_table
from analysis.neurons.topics import cluster_tokens, dealt_anew, find_topics, own_tokens
from analysis.run.run import Run
from analysis.run.tallies import read_tally
from capture.errors import ConfigError, RunError, at_least

JOB = "neurons"
WEIGHTS = ("rows", "shift")

Report = Callable[[int, int], None]
"""Told after every bootstrap sample: how many are done, how many in all."""


@dataclass(frozen=True, kw_only=True)
class NeuronsConfig:
    """What counts, how neurons are grouped, and how often that is tried again."""

    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    weight: Literal["rows", "shift"] = "rows"
    """What a neuron has of a datum: outlier rows, or Σ |shift| of these."""
    min_rows: int = 20
    """Neurons with fewer outlier rows are left out."""
    tokens_weight: float = 0.0
    """Weight of token profiles (the tallies' update norm by target) beside datums, 0 to 1."""
    bootstraps: int = 20
    """Bootstrap samples of the datums."""

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            problem = f"got {self.weight!r}, must be one of {', '.join(WEIGHTS)}"
            raise ConfigError("neurons.weight", problem)
        at_least("neurons.min_rows", self.min_rows, 1)
        at_least("neurons.bootstraps", self.bootstraps, 2)
        if not 0 <= self.tokens_weight <= 1:
            problem = f"got {self.tokens_weight}, must be from 0 to 1"
            raise ConfigError("neurons.tokens_weight", problem)


@dataclass(frozen=True, eq=False)
class Neurons:
    """Clusters of neurons, and the neurons."""

    neurons: pd.DataFrame
    """``NEURONS``"""
    clusters: pd.DataFrame
    """``CLUSTERS``"""
    stability: pd.DataFrame
    """``STABILITY``"""


def ignore(done: int, total: int) -> None:
    """Report to nobody."""


def read_moved(run: Run, run_job: Runner) -> Moved:
    """What moved every neuron; raises ``RunError`` without outliers or MLP weights."""
    if not mlp_units(run.layout):
        raise RunError(run.uri, "captured no MLP weights", "Capture some with capture.units")
    shards = run.require_shards("outliers")
    return run_job(MovedNeurons(run.layout, run.target_NT, run.num_tokens), shards)


def group_neurons(
    run: Run, moved: Moved, config: NeuronsConfig, report: Report = ignore
) -> Neurons:
    """Cluster the neurons of a run by what moved them.

    Raises ``RunError`` if too few neurons have enough rows, or if ``tokens_weight`` asks for
    tallies that the run lacks.
    """
    every = every_neuron(run, moved)
    row_G = enough_rows(run, every, config)
    neurons = every.loc[row_G].reset_index(drop=True)
    datum_GN, token_GV = matrices(moved, len(every), row_G, config.weight)
    views = [(datum_GN, 1 - config.tokens_weight)]
    if config.tokens_weight > 0:
        views.append((token_profiles(run, neurons), config.tokens_weight))
    place_GD, clusters = clustered(views, config.clustering)
    seed = config.clustering.seed
    stability = bootstrap(
        clusters.label_G,
        lambda rng: clustered(views, config.clustering, rng)[1].label_G,
        samples=config.bootstraps,
        seed=seed,
        report=report,
    )
    own = own_tokens(token_GV, datum_GN, neurons["unit"].to_numpy(str))
    topics = find_topics(own, token_GV)
    by_chance = find_topics(dealt_anew(own, seed), token_GV)
    names = np.array(run.tokens, object)
    labels = cluster_tokens(own, clusters.label_G, run.num_tokens)
    return Neurons(
        neurons=neuron_table(neurons, clusters, plane(place_GD, seed), topics, names),
        clusters=cluster_table(neurons, clusters, stability, labels, names),
        stability=stability_table(
            settings(config, len(every) - len(neurons)), clusters, stability, topics, by_chance
        ),
    )


def settings(config: NeuronsConfig, left_out: int) -> dict[str, object]:
    """What the clusters depend on besides the run, and how many neurons had too few rows."""
    names = ("method", "components", "min_cluster", "seed")
    return {
        **{name: getattr(config.clustering, name) for name in names},
        "weight": config.weight,
        "tokens_weight": config.tokens_weight,
        "left_out": left_out,
    }


def write_neurons(run: Run, found: Neurons) -> None:
    """Leave the tables in the run, under ``analysis/neurons/``."""
    write_tables(run, JOB, vars(found), TABLES)


# --- what goes in ---------------------------------------------------------------------------------


def every_neuron(run: Run, moved: Moved) -> pd.DataFrame:
    """unit, neuron and rows of every MLP neuron, in the order of units and columns."""
    units = mlp_units(run.layout)
    sizes = list(units.values())
    of_key_K = moved.datums.key_K // moved.datums.num_columns
    rows = np.bincount(of_key_K, moved.datums.rows_K, minlength=sum(sizes))
    return pd.DataFrame(
        {
            "unit": np.repeat(np.array(list(units), object), sizes),
            "neuron": np.concatenate([np.arange(size) for size in sizes]),
            "rows": rows.astype(np.int64),
        }
    )


def enough_rows(run: Run, every: pd.DataFrame, config: NeuronsConfig) -> np.ndarray:
    """Places of the neurons with enough rows, [G]; raises ``RunError`` if they are too few."""
    row_G = np.flatnonzero(every["rows"] >= config.min_rows)
    wanted = config.clustering.least_neurons
    if len(row_G) < wanted:
        problem = (
            f"has {len(row_G)} neurons with {config.min_rows} or more outlier rows, "
            f"grouping needs {wanted}"
        )
        raise RunError(run.uri, problem, "Ask for less with --min-rows, or for smaller clusters")
    return row_G


def matrices(
    moved: Moved, num_neurons: int, row_G: np.ndarray, weight: str
) -> tuple[csr_array, csr_array]:
    """What the kept neurons have of each datum, [G, N], and of each target token, [G, V]."""
    by_datum, by_token = (
        sums.matrix(num_neurons, sums.rows_K if weight == "rows" else sums.shift_K)[row_G]
        for sums in (moved.datums, moved.tokens)
    )
    return by_datum, by_token


def token_profiles(run: Run, neurons: pd.DataFrame) -> csr_array:
    """How far each target token moved each neuron over all of training (update norm), [G, V]."""
    parts = [
        read_tally(run, str(unit)).update_norm_VI[:, own["neuron"]].T
        for unit, own in neurons.groupby("unit", sort=False)
    ]
    return csr_array(np.concatenate(parts).astype(np.float64))


def clustered(
    views: list[tuple[csr_array, float]],
    config: ClusteringConfig,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, Clusters]:
    """Coordinates, [G, D], and clusters; with ``rng``, of a bootstrap sample of the columns."""
    weighed = [
        (associations(counts, draw(counts.shape[1], rng) if rng else None), weight)
        for counts, weight in views
        if weight > 0
    ]
    place_GD = coordinates(weighed, config)
    return place_GD, find_clusters(place_GD, config)
