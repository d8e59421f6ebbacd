"""Find clusters of neurons that the same data moved, and polysemantic neurons.

1. Sum the outlier rows of every MLP neuron (a column) by datum and by target token
   (``analysis.neurons.datums``).
2. Cluster neurons that were moved by the same datums (``analysis.neurons.clustering``).
3. Repeat the clustering on bootstrap samples of the datums to measure the stability of clusters
   (``analysis.neurons.stability``).
4. Label clusters with the own tokens of their neurons, and find polysemantic neurons, whose own
   tokens form several topics (``analysis.neurons.topics``).

Shapes: G neuron with enough rows, N datum, V token of the vocabulary, D coordinate.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from analysis.jobs.job import Runner
from analysis.jobs.question import Question
from analysis.jobs.tables import table_set, write_tables
from analysis.lifetime.run import lifetime_run, read_tally
from analysis.measures.association import associations
from analysis.neurons.clustering import (
    ClusteringConfig,
    Clusters,
    coordinates,
    find_clusters,
    tsne_map,
)
from analysis.neurons.datums import OutlierSums, SumOutliersByNeuron, mlp_units
from analysis.neurons.stability import bootstrap_stability, draw_columns
from analysis.neurons.tables import TABLES, cluster_table, neuron_table, stability_table
from analysis.neurons.topics import cluster_tokens, find_topics, own_tokens, shuffle_tokens
from analysis.run.run import Run
from capture.errors import ConfigError, RunError, at_least

JOB = "neurons"
WEIGHTS = ("rows", "shift")

ProgressReport = Callable[[int, int], None]
"""Called after every bootstrap sample with the number of samples done and of all."""


@dataclass(frozen=True, kw_only=True)
class NeuronsConfig:
    """What is counted, how neurons are clustered, and the number of bootstrap samples."""

    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    weight: Literal["rows", "shift"] = "rows"
    """Count for a neuron and datum: the number of outlier rows, or their Σ|shift|."""
    min_rows: int = 20
    """Neurons with fewer outlier rows are excluded."""
    tokens_weight: float = 0.0
    """Weight of token profiles (the tallies' update norm by target) beside datums, 0 to 1."""
    bootstraps: int = 20
    """Bootstrap samples of the datums."""
    lifetime: bool = False
    """Whether shifts are lifetime shifts (``analysis.lifetime``), not those of one step."""

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
class NeuronClusters:
    """The result of ``group_neurons``."""

    neurons: pd.DataFrame
    """``NEURONS``"""
    clusters: pd.DataFrame
    """``CLUSTERS``"""
    stability: pd.DataFrame
    """``STABILITY``"""


def ignore_progress(done: int, total: int) -> None:
    """A progress report that does nothing."""


def read_outlier_sums(run: Run, run_job: Runner, *, lifetime: bool = False) -> OutlierSums:
    """Sum the outlier rows of every neuron; ``lifetime``: of lifetime shifts.

    Raises ``RunError`` without outliers or MLP weights; with ``lifetime`` what ``lifetime_run``
    raises.
    """
    if not mlp_units(run.layout):
        raise RunError(run.uri, "captured no MLP weights", "Capture some with capture.units")
    run = lifetime_run(run) if lifetime else run
    shards = run.require_shards("outliers")
    return run_job(SumOutliersByNeuron(run.layout, run.recorded_target_NT, run.num_tokens), shards)


def group_neurons(
    run: Run, sums: OutlierSums, config: NeuronsConfig, report: ProgressReport = ignore_progress
) -> NeuronClusters:
    """Cluster the neurons of a run by the datums that moved them; ``sums`` as ``config`` asks.

    Raises ``RunError`` if too few neurons have enough rows, or if ``tokens_weight`` asks for
    tallies that the run lacks.
    """
    run = lifetime_run(run) if config.lifetime else run
    every = count_outlier_rows(run, sums)
    row_G = select_neurons(run, every, config)
    neurons = every.loc[row_G].reset_index(drop=True)
    datum_GN, token_GV = count_matrices(sums, len(every), row_G, config.weight)
    views = [(datum_GN, 1 - config.tokens_weight)]
    if config.tokens_weight > 0:
        views.append((token_profiles(run, neurons), config.tokens_weight))
    point_GD, clusters = cluster_views(views, config.clustering)
    seed = config.clustering.seed
    stability = bootstrap_stability(
        clusters.label_G,
        lambda rng: cluster_views(views, config.clustering, rng)[1].label_G,
        samples=config.bootstraps,
        seed=seed,
        report=report,
    )
    own = own_tokens(token_GV, datum_GN, neurons["unit"].to_numpy(str))
    topics = find_topics(own, token_GV)
    shuffled = find_topics(shuffle_tokens(own, seed), token_GV)
    names = np.array(run.tokens, object)
    labels = cluster_tokens(own, clusters.label_G, run.num_tokens)
    return NeuronClusters(
        neurons=neuron_table(neurons, clusters, tsne_map(point_GD, seed), topics, names),
        clusters=cluster_table(neurons, clusters, stability, labels, names),
        stability=stability_table(
            settings_columns(config, len(every) - len(neurons)),
            clusters,
            stability,
            topics,
            shuffled,
        ),
    )


def settings_columns(config: NeuronsConfig, left_out: int) -> dict[str, object]:
    """The first columns of ``STABILITY``: settings, and the number of excluded neurons."""
    names = ("method", "components", "min_cluster", "seed")
    return {
        **{name: getattr(config.clustering, name) for name in names},
        "weight": config.weight,
        "tokens_weight": config.tokens_weight,
        "left_out": left_out,
    }


def write_neurons(
    run: Run, found: NeuronClusters, question: Question | None = None, name: str = ""
) -> None:
    """Write the tables to ``run.tables``, as the set with this name."""
    write_tables(run, table_set(JOB, name), vars(found), TABLES, question)


# --- inputs ---------------------------------------------------------------------------------------


def count_outlier_rows(run: Run, sums: OutlierSums) -> pd.DataFrame:
    """Columns unit, neuron, rows: one row per MLP neuron, in the order of units and columns."""
    units = mlp_units(run.layout)
    sizes = list(units.values())
    neuron_K = sums.datums.key_K // sums.datums.num_columns
    rows = np.bincount(neuron_K, sums.datums.rows_K, minlength=sum(sizes))
    return pd.DataFrame(
        {
            "unit": np.repeat(np.array(list(units), object), sizes),
            "neuron": np.concatenate([np.arange(size) for size in sizes]),
            "rows": rows.astype(np.int64),
        }
    )


def select_neurons(run: Run, every: pd.DataFrame, config: NeuronsConfig) -> np.ndarray:
    """Indices of the neurons with enough rows, [G]. Raises ``RunError`` if they are too few."""
    row_G = np.flatnonzero(every["rows"] >= config.min_rows)
    wanted = config.clustering.least_neurons
    if len(row_G) < wanted:
        problem = (
            f"has {len(row_G)} neurons with {config.min_rows} or more outlier rows, "
            f"clustering needs {wanted}"
        )
        raise RunError(run.uri, problem, "Lower --min-rows, or ask for smaller clusters")
    return row_G


def count_matrices(
    sums: OutlierSums, num_neurons: int, row_G: np.ndarray, weight: str
) -> tuple[csr_array, csr_array]:
    """Counts of the selected neurons by datum, [G, N], and by target token, [G, V]."""
    by_datum, by_token = (
        part.matrix(num_neurons, part.rows_K if weight == "rows" else part.shift_K)[row_G]
        for part in (sums.datums, sums.tokens)
    )
    return by_datum, by_token


def token_profiles(run: Run, neurons: pd.DataFrame) -> csr_array:
    """Return the update norm of each neuron by target token over all of training, [G, V]."""
    parts = [
        read_tally(run, str(unit)).update_norm_VI[:, own["neuron"]].T
        for unit, own in neurons.groupby("unit", sort=False)
    ]
    return csr_array(np.concatenate(parts).astype(np.float64))


def cluster_views(
    views: list[tuple[csr_array, float]],
    config: ClusteringConfig,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, Clusters]:
    """Coordinates [G, D] and clusters; with ``rng``, of a bootstrap sample of the columns."""
    weighted = [
        (associations(counts, draw_columns(counts.shape[1], rng) if rng else None), weight)
        for counts, weight in views
        if weight > 0
    ]
    point_GD = coordinates(weighted, config)
    return point_GD, find_clusters(point_GD, config)
