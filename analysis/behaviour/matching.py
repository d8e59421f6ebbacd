"""Match every selected datum with controls: similar datums without the behaviour.

Datums that show a behaviour may also differ in other ways: rare words have larger losses and so
larger shifts, and later visits have a lower learning rate. Controls are therefore the datums
without the behaviour that are nearest in

1. visits: the number of steps that visited the datum (equal whenever possible),
2. the mean log count of the window's tokens in the training text,
3. the number of distinct tokens in the window,

the last two in standard deviations over all datums. ``balance`` measures the remaining differences.

Shapes: N datum, T position, C covariate, S selected datum, K controls of each.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

COVARIATES = ("visits", "mean_log_count", "distinct_tokens")
VISIT_SCALE = 1e6
"""Distance of one visit, in standard deviations: so large that visits are matched first."""


@dataclass(frozen=True, eq=False)
class MatchedControls:
    """Selected datums and the controls of each."""

    selected_S: np.ndarray
    """Datum ids, ascending."""
    control_SK: np.ndarray
    """Datum ids, nearest first; a datum may be the control of several."""


def covariates(token_NT: np.ndarray, count_V: np.ndarray, visits_N: np.ndarray) -> np.ndarray:
    """The values that datums are matched on, in the order of ``COVARIATES``, float64 [N, C]."""
    log_count_NT = np.log(np.maximum(count_V, 1))[token_NT]
    sorted_NT = np.sort(token_NT, 1)
    distinct_N = 1 + (np.diff(sorted_NT, axis=1) != 0).sum(1)
    return np.stack([visits_N, log_count_NT.mean(1), distinct_N], 1).astype(np.float64)


def match(
    covariate_NC: np.ndarray, selected_S: np.ndarray, candidate_N: np.ndarray, k: int, seed: int
) -> MatchedControls:
    """Find the k candidates nearest to each selected datum; the seed decides between ties.

    ``candidate_N`` (bool) marks the datums that may be controls: at least k, none selected.
    """
    # Which of several equally near points a tree returns depends on the order of its points.
    pool_M = np.random.default_rng(seed).permutation(np.flatnonzero(candidate_N))
    assert len(pool_M) >= k
    point_NC = covariate_NC / standard_deviations(covariate_NC)
    point_NC[:, 0] = covariate_NC[:, 0] * VISIT_SCALE
    _, near_SK = KDTree(point_NC[pool_M]).query(point_NC[selected_S], k=np.arange(1, k + 1))
    return MatchedControls(selected_S, pool_M[near_SK])


def standard_deviations(covariate_NC: np.ndarray) -> np.ndarray:
    """Standard deviation of each covariate; 1 if all values are equal."""
    deviation_C = covariate_NC.std(0)
    return np.where(deviation_C > 0, deviation_C, 1)


def balance(covariate_NC: np.ndarray, matched: MatchedControls) -> pd.DataFrame:
    """Means of both classes and their standardized difference; columns of ``BALANCE``."""
    selected_C = covariate_NC[matched.selected_S].mean(0)
    control_C = covariate_NC[matched.control_SK.ravel()].mean(0)
    return pd.DataFrame(
        {
            "covariate": COVARIATES,
            "selected_mean": selected_C,
            "control_mean": control_C,
            "standardised_difference": (selected_C - control_C) / standard_deviations(covariate_NC),
        }
    )
