"""Clusters of positions: by the cosines of their gradients, and by their loss curves.

By gradients: quanta discovery of Michaud et al. 2023, "The quantization model of neural scaling",
section 5.1. The cosine c of two gradients becomes the similarity 1 − arccos(c) / π, and spectral
clustering cuts the graph of all similarities. Its null shuffles gradients: in each unit the
positions' gradients are permuted on their own, so that each unit keeps its gradients and no two
units of a position belong together.

By loss curves: k-means on curves of mean 0 and length 1. Its null permutes the changes of each
curve from checkpoint to checkpoint, so that a curve keeps its ends and its largest changes, and no
two curves change at the same time for a reason.

Shapes: U unit, M position, K checkpoint.
"""

import numpy as np


def cosines(gram_UMM: np.ndarray) -> np.ndarray:
    """Return the cosines of gradients over all units, float64 [M, M]; 0 for a zero gradient."""
    gram_MM = gram_UMM.sum(0, dtype=np.float64)
    length_M = np.sqrt(np.diag(gram_MM).clip(0))
    there_M = length_M > 0
    inverse_M = np.divide(1, length_M, out=np.zeros_like(length_M), where=there_M)
    cosine_MM = np.clip(gram_MM * np.multiply.outer(inverse_M, inverse_M), -1, 1)
    np.fill_diagonal(cosine_MM, 1)
    return cosine_MM


def shuffled(gram_UMM: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the inner products with the positions of each unit permuted, [U, M, M]."""
    orders = [rng.permutation(gram_UMM.shape[1]) for _ in gram_UMM]
    return np.stack([gram[np.ix_(o, o)] for gram, o in zip(gram_UMM, orders, strict=True)])


def by_gradients(cosine_MM: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the cluster of each position, [M], numbered from the largest."""
    from sklearn.cluster import SpectralClustering  # takes a second to load

    similarity_MM = 1 - np.arccos(cosine_MM) / np.pi
    found = SpectralClustering(count, affinity="precomputed", random_state=seed, n_init=10)
    return largest_first(found.fit_predict(similarity_MM))


def by_curves(loss_KM: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the cluster of each position's loss curve, [M], numbered from the largest."""
    from sklearn.cluster import KMeans

    centred_KM = loss_KM - loss_KM.mean(0)
    length_M = np.linalg.norm(centred_KM, axis=0)
    shape_KM = centred_KM / np.where(length_M > 0, length_M, 1)
    found = KMeans(count, random_state=seed, n_init=10).fit_predict(shape_KM.T)
    return largest_first(found)


def shuffled_curves(loss_KM: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return curves with the same first value and their changes in random order, [K, M]."""
    change_KM = rng.permuted(np.diff(loss_KM, axis=0), axis=0)
    return np.concatenate([loss_KM[:1], loss_KM[0] + np.cumsum(change_KM, 0)])


def largest_first(label_M: np.ndarray) -> np.ndarray:
    """Return the labels renumbered from 0 by size; equal sizes in the order of their positions."""
    values, first, counts = np.unique(label_M, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    return rank[np.searchsorted(values, label_M)]


def within(cosine_MM: np.ndarray, cluster_M: np.ndarray) -> np.ndarray:
    """Return the mean cosine of different positions of each cluster; NaN for a single position."""
    found = []
    for number in range(cluster_M.max() + 1):
        own = cluster_M == number
        count = int(own.sum())
        pairs = count * (count - 1)
        total = cosine_MM[np.ix_(own, own)].sum() - count
        found.append(total / pairs if pairs else np.nan)
    return np.array(found)


def mean_within(cosine_MM: np.ndarray, cluster_M: np.ndarray) -> float:
    """Return the mean over positions of their mean cosine with the others of their cluster.

    A position that is alone in its cluster is left out; NaN if all are.
    """
    own_M = within(cosine_MM, cluster_M)[cluster_M]
    return float(np.nanmean(own_M)) if np.isfinite(own_M).any() else float("nan")


def explained(loss_KM: np.ndarray, cluster_M: np.ndarray) -> float:
    """Return the share of the variance of loss curves, less their first values, that lies between
    clusters: 1 if the positions of each cluster learn alike; NaN if no curve differs."""
    fall_KM = loss_KM - loss_KM[0]
    total = np.square(fall_KM - fall_KM.mean(1, keepdims=True)).sum()
    between = 0.0
    for number in range(cluster_M.max() + 1):
        own_KM = fall_KM[:, cluster_M == number]
        between += own_KM.shape[1] * np.square(own_KM.mean(1) - fall_KM.mean(1)).sum()
    return float(between / total) if total > 0 else float("nan")
