"""Which neurons belong together: few coordinates, clusters among them, and a map in the plane.

Two neurons are alike if the same datums move them more than chance would have it
(``analysis.measures.association``). Each view of the neurons (their datums; their tokens) becomes a
few coordinates by truncated SVD, scaled to length 1; views stand side by side, weighted, so that
the inner product of two neurons is the weighted mean of their cosines.

- **hdbscan** (Campello, Moulavi & Sander 2013) finds the groups that stay together over the widest
  range of densities. It chooses their number and leaves alone what belongs to none: the default,
  because most neurons of a small model answer to many things, and should not be forced together.
- **agglomerative** joins neurons by average cosine until the asked number of clusters is left.

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
LARGEST = 2**31 - 1
"""Whole numbers beyond are refused: seeds of scikit-learn and columns of tables end near here."""


@dataclass(frozen=True, kw_only=True)
class ClusteringConfig:
    """How neurons are compared and grouped."""

    method: Method = "hdbscan"
    clusters: int | None = None
    """How many clusters agglomerative leaves; hdbscan finds its own number."""
    min_cluster: int = 5
    """hdbscan: fewer neurons than this are no cluster."""
    components: int = 20
    """Coordinates per view."""
    seed: int = 0
    """Of the SVD, the map and the bootstrap samples."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            problem = f"got {self.method!r}, must be one of {', '.join(METHODS)}"
            raise ConfigError("neurons.method", problem)
        for name, least in {"min_cluster": 2, "components": 2, "seed": 0}.items():
            at_least(f"neurons.{name}", getattr(self, name), least)
            at_most(f"neurons.{name}", getattr(self, name), LARGEST)
        if self.method == "agglomerative" and self.clusters is None:
            problem = "is not given, but agglomerative needs it"
            raise ConfigError("neurons.clusters", problem, "Say how many, or use hdbscan")
        if self.clusters is not None:
            if self.method == "hdbscan":
                problem = f"got {self.clusters}, but hdbscan finds their number itself"
                raise ConfigError("neurons.clusters", problem, "Leave it out or use agglomerative")
            at_least("neurons.clusters", self.clusters, 2)

    @property
    def least_neurons(self) -> int:
        """Fewer cannot be grouped."""
        return max(2 * self.min_cluster, (self.clusters or 0) + 1, 6)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Who belongs where; clusters are numbered by size, largest first, from 0."""

    label_G: np.ndarray
    """Cluster of each neuron, -1 for none, int32."""
    membership_G: np.ndarray
    """How firmly it belongs there, 0 to 1: hdbscan's probability, or the cosine with the mean."""

    @property
    def num_clusters(self) -> int:
        return int(self.label_G.max(initial=-1)) + 1


def coordinates(views: list[tuple[csr_array, float]], config: ClusteringConfig) -> np.ndarray:
    """Neurons as points on the unit sphere, [G, D]; each view is a matrix [G, C] and its weight."""
    parts = [np.sqrt(weight) * reduced(matrix, config) for matrix, weight in views if weight > 0]
    return unit_rows(np.hstack(parts))


def reduced(matrix_GC: csr_array, config: ClusteringConfig) -> np.ndarray:
    """The strongest left singular vectors times their singular values, rows of length 1, [G, D]."""
    components = min(config.components, *matrix_GC.shape)
    u_GD, s_D, _ = randomized_svd(
        matrix_GC, components, n_iter=POWER_ITERATIONS, random_state=config.seed
    )
    return unit_rows(u_GD * s_D)


def unit_rows(x_GD: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros stays."""
    length_G1 = np.linalg.norm(x_GD, axis=1, keepdims=True)
    return x_GD / np.where(length_G1 > 0, length_G1, 1)


def find_clusters(x_GD: np.ndarray, config: ClusteringConfig) -> Clusters:
    if config.method == "hdbscan":
        model = HDBSCAN(min_cluster_size=config.min_cluster, copy=True).fit(x_GD)
        label_G, membership_G = model.labels_, np.asarray(model.probabilities_, np.float64)
    else:
        label_G = joined_by_average(1 - x_GD @ x_GD.T, num_clusters=config.clusters)
        membership_G = cosine_with_mean(x_GD, label_G)
    return Clusters(by_size(label_G), membership_G)


def joined_by_average(
    distance_GG: np.ndarray, *, num_clusters: int | None = None, farthest: float | None = None
) -> np.ndarray:
    """Average linkage, down to a number of clusters or up to a mean distance; labels [G]."""
    model = AgglomerativeClustering(
        num_clusters, metric="precomputed", linkage="average", distance_threshold=farthest
    )
    return model.fit(distance_GG).labels_


def cosine_with_mean(x_GD: np.ndarray, label_G: np.ndarray) -> np.ndarray:
    """Of each neuron with the mean of its cluster, [G]; what points away counts as 0."""
    mean_CD = unit_rows(np.stack([x_GD[label_G == c].mean(0) for c in range(label_G.max() + 1)]))
    return np.clip((x_GD * mean_CD[label_G]).sum(1), 0, 1)


def by_size(label_G: np.ndarray) -> np.ndarray:
    """The same clusters numbered by size, descending; ties by their first neuron; int32."""
    inside = label_G >= 0
    if not inside.any():
        return np.full(len(label_G), -1, np.int32)
    _, first_C, place_M, size_C = np.unique(
        label_G[inside], return_index=True, return_inverse=True, return_counts=True
    )
    new_C = np.empty(len(size_C), np.int32)
    new_C[np.lexsort((first_C, -size_C))] = np.arange(len(size_C))
    new_G = np.full(len(label_G), -1, np.int32)
    new_G[inside] = new_C[place_M]
    return new_G


def plane(x_GD: np.ndarray, seed: int) -> np.ndarray:
    """A map of the neurons, [G, 2]: t-SNE from the main axes. Near is alike, far says little."""
    perplexity = min(PERPLEXITY, (len(x_GD) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    return model.fit_transform(x_GD).astype(np.float64)
