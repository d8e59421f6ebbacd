"""How well a score ranks tokens: does it put the truly affected ones on top?

Shapes: S neuron, V token, W ranked token, R resample.
"""

import numpy as np
from scipy.stats import rankdata


def affected(size_W: np.ndarray, share: float) -> np.ndarray:
    """Which tokens are moved furthest: ``share`` of them, at least one; sizes are at least 0.

    Tokens that are moved as far as the last of them are among them; unmoved ones never are.
    """
    most = max(1, round(share * len(size_W)))
    least = np.partition(size_W, len(size_W) - most)[len(size_W) - most]
    return (size_W >= least) & (size_W > 0)


def auc(score_W: np.ndarray, affected_W: np.ndarray) -> float:
    """Probability that an affected token outranks another one, ties counting half.

    The area under the ROC curve (Hanley & McNeil 1982); NaN if all or none are affected.
    """
    num_hits, num_others = int(affected_W.sum()), int((~affected_W).sum())
    if not num_hits or not num_others:
        return float("nan")
    rank_sum = rankdata(score_W)[affected_W].sum()
    return float((rank_sum - num_hits * (num_hits + 1) / 2) / (num_hits * num_others))


def precision(score_W: np.ndarray, affected_W: np.ndarray, most: int) -> float:
    """Share of the ``most`` tokens of highest score that are affected.

    Of tokens that tie for the last places, the expected share of a fair draw is taken.
    """
    most = min(most, len(score_W))
    last = np.partition(score_W, len(score_W) - most)[len(score_W) - most]
    above_W, tied_W = score_W > last, score_W == last
    places = most - int(above_W.sum())
    return float((affected_W[above_W].sum() + places * affected_W[tied_W].mean()) / most)


def interval(value_S: np.ndarray, *, resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean over neurons and its 95 % bootstrap interval (percentiles); NaN values are left out."""
    value_S = value_S[~np.isnan(value_S)]
    if not len(value_S):
        return float("nan"), float("nan"), float("nan")
    draw_RS = np.random.default_rng(seed).integers(len(value_S), size=(resamples, len(value_S)))
    low, high = np.quantile(value_S[draw_RS].mean(1), [0.025, 0.975])
    return float(value_S.mean()), float(low), float(high)
