"""How well scores predict what retraining does to queries.

The linear datamodeling score (LDS; Park et al. 2023, "TRAK", definition 2.3) of a query is the
Spearman correlation, over random subsets of the training datums, of the sum of the scores of the
kept datums with the query's value after training on these alone.

Shapes: Q query, D datum, M retraining.
"""

import numpy as np
from scipy.stats import rankdata

from analysis.measures.bootstrap import mean_interval


def pearson(x_M: np.ndarray, y_M: np.ndarray) -> float:
    """Return the correlation; NaN if either is constant, not finite, or has fewer than 2 values."""
    x_M, y_M = (np.asarray(values, np.float64) for values in (x_M, y_M))
    if len(x_M) < 2 or not (np.isfinite(x_M).all() and np.isfinite(y_M).all()):
        return float("nan")
    # Equal values can have a mean that differs from them by rounding.
    if np.ptp(x_M) == 0 or np.ptp(y_M) == 0:
        return float("nan")
    x_M, y_M = x_M - x_M.mean(), y_M - y_M.mean()
    return float(x_M @ y_M / np.sqrt((x_M @ x_M) * (y_M @ y_M)))


def spearman(x_M: np.ndarray, y_M: np.ndarray) -> float:
    """Return the correlation of ranks, ties with their mean rank; NaN as ``pearson``."""
    if not (np.isfinite(x_M).all() and np.isfinite(y_M).all()):
        return float("nan")
    return pearson(rankdata(x_M), rankdata(y_M))


def datamodeling_scores(
    score_QD: np.ndarray, weight_MD: np.ndarray, value_MQ: np.ndarray
) -> np.ndarray:
    """Return the LDS of each query, [Q]; NaN for a query without scores.

    ``weight_MD``: weight of each datum in each retraining, 0 if it was left out.
    ``value_MQ``: value of each query after each retraining.
    """
    predicted_QM = score_QD @ weight_MD.T
    pairs = zip(predicted_QM, value_MQ.T, strict=True)
    return np.array([spearman(predicted_M, value_M) for predicted_M, value_M in pairs])


def mean_over_queries(value_Q: np.ndarray) -> tuple[float, float, float, int]:
    """Return mean, 95 % bootstrap interval over queries, and the number of queries with a value."""
    known_Q = value_Q[np.isfinite(value_Q)]
    if not len(known_Q):
        return float("nan"), float("nan"), float("nan"), 0
    low, high = mean_interval(known_Q)
    return float(known_Q.mean()), low, high, len(known_Q)
