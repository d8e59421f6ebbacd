"""Would the same clusters come out if the training data had been a little different?

Datums are drawn with replacement as many times as there are (a bootstrap sample), the neurons are
clustered again, and the two results are compared: as a whole by the adjusted Rand index (Hubert &
Arabie 1985: 1 the same pairs of neurons together, 0 as many as by chance), and cluster by cluster
by the Jaccard similarity with the most similar new one (Hennig 2007, who calls less than 0.5
dissolved and more than 0.75 stable). A neuron in no cluster is together with no other.

Shapes: G neuron, B bootstrap sample, C cluster, D cluster of another clustering.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

INTERVAL = (2.5, 97.5)
"""Percentiles over bootstrap samples: 95 % of them lie between."""


@dataclass(frozen=True, eq=False)
class Stability:
    """What bootstrap samples made of the clusters."""

    agreement_B: np.ndarray
    """Adjusted Rand index, NaN where neither side has a cluster."""
    jaccard_BC: np.ndarray
    """Jaccard similarity of each cluster with its best counterpart, 0 to 1."""


def bootstrap(
    label_G: np.ndarray,
    recluster: Callable[[np.random.Generator], np.ndarray],
    *,
    samples: int,
    seed: int,
    report: Callable[[int, int], None],
) -> Stability:
    """Cluster again for each sample; ``recluster`` draws one and returns the new labels, [G]."""
    agreement_B, jaccard_BC = [], []
    for b in range(samples):
        again_G = recluster(np.random.default_rng([seed, b]))
        agreement_B.append(agreement(label_G, again_G))
        jaccard_BC.append(best_jaccard(label_G, again_G))
        report(b + 1, samples)
    return Stability(np.array(agreement_B), np.stack(jaccard_BC))


def draw(num_columns: int, rng: np.random.Generator) -> np.ndarray:
    """How often each column is in a bootstrap sample, [columns]."""
    return rng.multinomial(num_columns, np.full(num_columns, 1 / num_columns))


def overlaps(a_G: np.ndarray, b_G: np.ndarray) -> np.ndarray:
    """How many neurons each cluster of one shares with each of the other, [C + 1, D + 1].

    The last row and column are those in no cluster (-1).
    """
    num_a, num_b = a_G.max(initial=-1) + 1, b_G.max(initial=-1) + 1
    a_G, b_G = np.where(a_G < 0, num_a, a_G), np.where(b_G < 0, num_b, b_G)
    counts = np.bincount(a_G * (num_b + 1) + b_G, minlength=(num_a + 1) * (num_b + 1))
    return counts.reshape(num_a + 1, num_b + 1)


def agreement(a_G: np.ndarray, b_G: np.ndarray) -> float:
    """Adjusted Rand index, each neuron without a cluster on its own; NaN if no two are together."""
    shared = overlaps(a_G, b_G)
    both = pairs(shared[:-1, :-1])
    in_a, in_b = pairs(shared.sum(1)[:-1]), pairs(shared.sum(0)[:-1])
    if in_a + in_b == 0:
        return np.nan
    expected = in_a * in_b / pairs(np.array([len(a_G)]))
    most = (in_a + in_b) / 2
    return float((both - expected) / (most - expected)) if most > expected else 1.0


def pairs(size_C: np.ndarray) -> float:
    """Pairs of neurons within groups of these sizes, in all."""
    return float((size_C * (size_C - 1)).sum()) / 2


def best_jaccard(a_G: np.ndarray, b_G: np.ndarray) -> np.ndarray:
    """For each cluster of the first: shared / together, with its best counterpart, [C]."""
    shared = overlaps(a_G, b_G)
    together = shared.sum(1)[:-1, None] + shared.sum(0)[None, :-1] - shared[:-1, :-1]
    return (shared[:-1, :-1] / together).max(axis=1, initial=0)


def spread(value_B: np.ndarray) -> tuple[float, float, float]:
    """Mean, low and high over bootstrap samples; NaN if none has a value."""
    found = value_B[~np.isnan(value_B)]
    if not len(found):
        return np.nan, np.nan, np.nan
    low, high = np.percentile(found, INTERVAL)
    return float(found.mean()), float(low), float(high)
