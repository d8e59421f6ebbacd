"""Cluster neurons by the datums that moved them, and map them to the plane.

Two neurons are similar if the same datums moved them more than expected by chance
(``analysis.measures.association``). Each view of the neurons (their datums; their tokens) is
reduced to a few coordinates by truncated SVD, scaled to length 1. Views are concatenated with
weights, so the inner product of two neurons is the weighted mean of their cosines.

- **hdbscan** (Campello, Moulavi & Sander 2013) finds the groups that persist over the widest range
  of densities. It chooses their number and leaves other neurons without a cluster. This is the
  default, because most neurons of a small model are moved by many kinds of data.
- **agglomerative** merges neurons by average cosine until the requested number of clusters is left.

Shapes: G neuron, C column, D coordinate.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import csr_array
from sklearn.cluster import HDBSCAN, AgglomerativeClustering
from sklearn.manifold import TSNE
from sklearn.utils.extmath import randomized_svd

from capture.errors import ConfigError, at_least, at_most

Method = Literal["hdbscan", "agglomerative"]
METHODS: tuple[Method, ...] = ("hdbscan", "agglomerative")
POWER_ITERATIONS = 4
PERPLEXITY = 30.0
MAX_INTEGER = 2**31 - 1
"""Largest integer setting: scikit-learn's seeds and the columns of tables are 32-bit."""


@dataclass(frozen=True, kw_only=True)
class ClusteringConfig:
    """How neurons are compared and clustered."""

    method: Method = "hdbscan"
    clusters: int | None = None
    """Number of clusters, for agglomerative only; hdbscan chooses it."""
    min_cluster: int = 5
    """hdbscan: least number of neurons in a cluster."""
    components: int = 20
    """Coordinates per view."""
    seed: int = 0
    """Seed of the SVD, the map and the bootstrap samples."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            problem = f"got {self.method!r}, must be one of {', '.join(METHODS)}"
            raise ConfigError("neurons.method", problem)
        for name, least in {"min_cluster": 2, "components": 2, "seed": 0}.items():
            at_least(f"neurons.{name}", getattr(self, name), least)
            at_most(f"neurons.{name}", getattr(self, name), MAX_INTEGER)
        if self.method == "agglomerative" and self.clusters is None:
            problem = "is not given, but agglomerative needs it"
            raise ConfigError("neurons.clusters", problem, "Give a number, or use hdbscan")
        if self.clusters is not None:
            if self.method == "hdbscan":
                problem = f"got {self.clusters}, but hdbscan chooses the number of clusters"
                raise ConfigError("neurons.clusters", problem, "Leave it out or use agglomerative")
            at_least("neurons.clusters", self.clusters, 2)

    @property
    def least_neurons(self) -> int:
        """Least number of neurons that can be clustered."""
        return max(2 * self.min_cluster, (self.clusters or 0) + 1, 6)


@dataclass(frozen=True, eq=False)
class Clusters:
    """The cluster of each neuron; clusters are numbered by size from 0, largest first."""

    label_G: np.ndarray
    """Cluster of each neuron, -1 for none, int32."""
    membership_G: np.ndarray
    """Strength of membership, 0 to 1: hdbscan's probability, or the cosine with the mean."""

    @property
    def num_clusters(self) -> int:
        return int(self.label_G.max(initial=-1)) + 1


def coordinates(views: list[tuple[csr_array, float]], config: ClusteringConfig) -> np.ndarray:
    """Neurons as points on the unit sphere, [G, D]; a view is a matrix [G, C] and its weight."""
    parts = [
        np.sqrt(weight) * truncated_svd(matrix, config) for matrix, weight in views if weight > 0
    ]
    return normalize_rows(np.hstack(parts))


def truncated_svd(matrix_GC: csr_array, config: ClusteringConfig) -> np.ndarray:
    """First left singular vectors times singular values, rows scaled to length 1, [G, D]."""
    components = min(config.components, *matrix_GC.shape)
    u_GD, s_D, _ = randomized_svd(
        matrix_GC, components, n_iter=POWER_ITERATIONS, random_state=config.seed
    )
    return normalize_rows(u_GD * s_D)


def normalize_rows(x_GD: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    length_G1 = np.linalg.norm(x_GD, axis=1, keepdims=True)
    return x_GD / np.where(length_G1 > 0, length_G1, 1)


def find_clusters(x_GD: np.ndarray, config: ClusteringConfig) -> Clusters:
    """Cluster the points with the configured method."""
    if config.method == "hdbscan":
        model = HDBSCAN(min_cluster_size=config.min_cluster, copy=True).fit(x_GD)
        label_G, membership_G = model.labels_, np.asarray(model.probabilities_, np.float64)
    else:
        label_G = average_linkage(1 - x_GD @ x_GD.T, num_clusters=config.clusters)
        membership_G = cluster_cosines(x_GD, label_G)
    return Clusters(number_by_size(label_G), membership_G)


def average_linkage(
    distance_GG: np.ndarray, *, num_clusters: int | None = None, max_distance: float | None = None
) -> np.ndarray:
    """Labels [G] by average linkage, stopped at a number of clusters or a mean distance."""
    model = AgglomerativeClustering(
        num_clusters, metric="precomputed", linkage="average", distance_threshold=max_distance
    )
    return model.fit(distance_GG).labels_


def cluster_cosines(x_GD: np.ndarray, label_G: np.ndarray) -> np.ndarray:
    """Cosine of each neuron with the mean of its cluster, [G]; negative values become 0."""
    mean_CD = normalize_rows(
        np.stack([x_GD[label_G == c].mean(0) for c in range(label_G.max() + 1)])
    )
    return np.clip((x_GD * mean_CD[label_G]).sum(1), 0, 1)


def number_by_size(label_G: np.ndarray) -> np.ndarray:
    """Renumber clusters by size, largest first, ties by their first neuron; int32 [G]."""
    inside = label_G >= 0
    if not inside.any():
        return np.full(len(label_G), -1, np.int32)
    _, first_C, cluster_M, size_C = np.unique(
        label_G[inside], return_index=True, return_inverse=True, return_counts=True
    )
    new_C = np.empty(len(size_C), np.int32)
    new_C[np.lexsort((first_C, -size_C))] = np.arange(len(size_C))
    new_G = np.full(len(label_G), -1, np.int32)
    new_G[inside] = new_C[cluster_M]
    return new_G


def tsne_map(x_GD: np.ndarray, seed: int) -> np.ndarray:
    """A t-SNE map of the neurons, [G, 2], initialized with PCA. Large distances mean little."""
    perplexity = min(PERPLEXITY, (len(x_GD) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    return model.fit_transform(x_GD).astype(np.float64)
