"""Controls: for every selected datum, others that are alike but for the behaviour.

A datum that shows a behaviour may differ in more than that: rare words make larger losses and so
larger shifts, and later visits come at a lower learning rate. Controls are therefore the nearest
datums without the behaviour, by

1. visits: how often training has seen the datum (equal, if any other has as many),
2. the mean over the window of the log of its tokens' counts in the training text,
3. how many different tokens the window has,

the last two in standard deviations over all datums. What remains between the two classes stands in
``balance``.

Shapes: N datum, T position, C covariate, S selected datum, K controls of each.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

COVARIATES = ("visits", "mean_log_count", "distinct_tokens")
APART = 1e6
"""Standard deviations that a difference of one visit counts for."""


@dataclass(frozen=True, eq=False)
class Matched:
    """Selected datums and the controls of each."""

    selected_S: np.ndarray
    """Ids, ascending."""
    control_SK: np.ndarray
    """Ids, nearest first; one datum may be the control of several."""


def covariates(token_NT: np.ndarray, count_V: np.ndarray, visits_N: np.ndarray) -> np.ndarray:
    """What datums are matched on, in the order of ``COVARIATES``, float64 [N, C]."""
    log_count_NT = np.log(np.maximum(count_V, 1))[token_NT]
    sorted_NT = np.sort(token_NT, 1)
    distinct_N = 1 + (np.diff(sorted_NT, axis=1) != 0).sum(1)
    return np.stack([visits_N, log_count_NT.mean(1), distinct_N], 1).astype(np.float64)


def match(
    covariate_NC: np.ndarray, selected_S: np.ndarray, candidate_N: np.ndarray, k: int, seed: int
) -> Matched:
    """The k candidates nearest to every selected datum; equal distances are drawn by the seed.

    ``candidate_N`` says which datums may be controls: at least k, none of them selected.
    """
    pool_M = np.random.default_rng(seed).permutation(np.flatnonzero(candidate_N))
    assert len(pool_M) >= k
    place_NC = covariate_NC / spread(covariate_NC)
    place_NC[:, 0] = covariate_NC[:, 0] * APART
    _, near_SK = KDTree(place_NC[pool_M]).query(place_NC[selected_S], k=np.arange(1, k + 1))
    return Matched(selected_S, pool_M[near_SK])


def spread(covariate_NC: np.ndarray) -> np.ndarray:
    """Standard deviation of each covariate, 1 where all are alike."""
    deviation_C = covariate_NC.std(0)
    return np.where(deviation_C > 0, deviation_C, 1)


def balance(covariate_NC: np.ndarray, matched: Matched) -> pd.DataFrame:
    """covariate, selected_mean, control_mean, and their difference in standard deviations."""
    selected_C = covariate_NC[matched.selected_S].mean(0)
    control_C = covariate_NC[matched.control_SK.ravel()].mean(0)
    return pd.DataFrame(
        {
            "covariate": COVARIATES,
            "selected_mean": selected_C,
            "control_mean": control_C,
            "standardised_difference": (selected_C - control_C) / spread(covariate_NC),
        }
    )
