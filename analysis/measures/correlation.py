"""Correlations of two samples.

Shapes: M value.
"""

import numpy as np
from scipy.stats import rankdata


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
