"""Measures of how well a score ranks tokens: AUC, precision, and their bootstrap intervals.

Shapes: S neuron, V token, W ranked token, R resample.
"""

import numpy as np
from scipy.stats import rankdata


def affected(size_W: np.ndarray, share: float) -> np.ndarray:
    """Return which tokens count as affected: the ``share`` of largest effect, at least one, [W].

    ``size_W`` holds effect sizes ≥ 0. Tokens that tie with the smallest of these are included;
    tokens of size 0 never are.
    """
    most = max(1, round(share * len(size_W)))
    least = np.partition(size_W, len(size_W) - most)[len(size_W) - most]
    return (size_W >= least) & (size_W > 0)


def auc(score_W: np.ndarray, affected_W: np.ndarray) -> float:
    """Return the probability that an affected token outranks another one; ties count half.

    This is the area under the ROC curve (Hanley & McNeil 1982). NaN if all or no tokens are
    affected.
    """
    num_hits, num_others = int(affected_W.sum()), int((~affected_W).sum())
    if not num_hits or not num_others:
        return float("nan")
    # The Mann–Whitney U statistic over the number of pairs; rankdata gives ties their mean rank.
    rank_sum = rankdata(score_W)[affected_W].sum()
    return float((rank_sum - num_hits * (num_hits + 1) / 2) / (num_hits * num_others))


def precision(score_W: np.ndarray, affected_W: np.ndarray, most: int) -> float:
    """Return the share of affected tokens among the ``most`` tokens of highest score.

    Tokens that tie for the last ranks count by expectation over a random choice among them.
    """
    most = min(most, len(score_W))
    last = np.partition(score_W, len(score_W) - most)[len(score_W) - most]
    above_W, tied_W = score_W > last, score_W == last
    remaining = most - int(above_W.sum())
    hits = affected_W[above_W].sum() + remaining * affected_W[tied_W].mean()
    return float(hits / most)


def interval(value_S: np.ndarray, *, resamples: int, seed: int) -> tuple[float, float, float]:
    """Return the mean over neurons and its 95 % percentile bootstrap interval; NaN is left out."""
    value_S = value_S[~np.isnan(value_S)]
    if not len(value_S):
        return float("nan"), float("nan"), float("nan")
    draw_RS = np.random.default_rng(seed).integers(len(value_S), size=(resamples, len(value_S)))
    low, high = np.quantile(value_S[draw_RS].mean(1), [0.025, 0.975])
    return float(value_S.mean()), float(low), float(high)
