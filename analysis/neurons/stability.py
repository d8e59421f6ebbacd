"""Stability of clusters under resampling of the training datums.

Datums are drawn with replacement, as many as there are (a bootstrap sample), and the neurons are
clustered again. The two clusterings are compared as a whole by the adjusted Rand index (Hubert &
Arabie 1985; 1 if the same pairs of neurons are together, 0 if as many as by chance), and each
cluster by its Jaccard similarity with the most similar new cluster (Hennig 2007, who calls clusters
below 0.5 dissolved and above 0.75 stable). A neuron in no cluster is together with no other.

Shapes: G neuron, B bootstrap sample, C cluster, D cluster of another clustering.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

PERCENTILES = (2.5, 97.5)
"""Percentiles over bootstrap samples that bound 95 % of them."""


@dataclass(frozen=True, eq=False)
class Stability:
    """Comparison of a clustering with those of bootstrap samples."""

    agreement_B: np.ndarray
    """Adjusted Rand index, NaN if neither side has a cluster."""
    jaccard_BC: np.ndarray
    """Jaccard similarity of each cluster with its most similar counterpart, 0 to 1."""


def bootstrap_stability(
    label_G: np.ndarray,
    recluster: Callable[[np.random.Generator], np.ndarray],
    *,
    samples: int,
    seed: int,
    report: Callable[[int, int], None],
) -> Stability:
    """Cluster ``samples`` bootstrap samples; ``recluster`` draws one and returns its labels [G]."""
    agreement_B, jaccard_BC = [], []
    for b in range(samples):
        again_G = recluster(np.random.default_rng([seed, b]))
        agreement_B.append(adjusted_rand_index(label_G, again_G))
        jaccard_BC.append(best_jaccard(label_G, again_G))
        report(b + 1, samples)
    return Stability(np.array(agreement_B), np.stack(jaccard_BC))


def draw_columns(num_columns: int, rng: np.random.Generator) -> np.ndarray:
    """Number of times each column is in a bootstrap sample, [num_columns]."""
    return rng.multinomial(num_columns, np.full(num_columns, 1 / num_columns))


def contingency_table(a_G: np.ndarray, b_G: np.ndarray) -> np.ndarray:
    """Number of neurons that each pair of clusters shares, [C + 1, D + 1].

    The last row and column count neurons in no cluster (-1).
    """
    num_a, num_b = a_G.max(initial=-1) + 1, b_G.max(initial=-1) + 1
    a_G, b_G = np.where(a_G < 0, num_a, a_G), np.where(b_G < 0, num_b, b_G)
    counts = np.bincount(a_G * (num_b + 1) + b_G, minlength=(num_a + 1) * (num_b + 1))
    return counts.reshape(num_a + 1, num_b + 1)


def adjusted_rand_index(a_G: np.ndarray, b_G: np.ndarray) -> float:
    """Adjusted Rand index, where each unclustered neuron is alone; NaN if no two are together."""
    shared = contingency_table(a_G, b_G)
    both = count_pairs(shared[:-1, :-1])
    in_a, in_b = count_pairs(shared.sum(1)[:-1]), count_pairs(shared.sum(0)[:-1])
    if in_a + in_b == 0:
        return np.nan
    expected = in_a * in_b / count_pairs(np.array([len(a_G)]))
    most = (in_a + in_b) / 2
    return float((both - expected) / (most - expected)) if most > expected else 1.0


def count_pairs(size_C: np.ndarray) -> float:
    """Total number of pairs within groups of these sizes."""
    return float((size_C * (size_C - 1)).sum()) / 2


def best_jaccard(a_G: np.ndarray, b_G: np.ndarray) -> np.ndarray:
    """Largest |A ∩ B| / |A ∪ B| of each cluster A of the first over all B of the second, [C]."""
    shared = contingency_table(a_G, b_G)
    union = shared.sum(1)[:-1, None] + shared.sum(0)[None, :-1] - shared[:-1, :-1]
    return (shared[:-1, :-1] / union).max(axis=1, initial=0)


def mean_and_interval(value_B: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval over the samples that are not NaN; all NaN if there are none."""
    found = value_B[~np.isnan(value_B)]
    if not len(found):
        return np.nan, np.nan, np.nan
    low, high = np.percentile(found, PERCENTILES)
    return float(found.mean()), float(low), float(high)
