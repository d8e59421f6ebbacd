"""How well scores predict what retraining does to queries.

The linear datamodeling score (LDS; Park et al. 2023, "TRAK", definition 2.3) of a query is the
Spearman correlation, over random subsets of the training datums, of the sum of the scores of the
kept datums with the query's value after training on these alone.

Shapes: Q query, D datum, M retraining.
"""

import numpy as np

from analysis.measures.bootstrap import mean_interval
from analysis.measures.correlation import spearman


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
