"""Standard errors of means over samples that depend on each other within groups.

Shapes: K mean, M sample, G group.
"""

import numpy as np


def standard_error(value_KM: np.ndarray, group_M: np.ndarray) -> np.ndarray:
    """Return the standard error of each mean over samples, [K]; NaN for samples of a single group.

    Samples of one group (positions of a datum) depend on each other, so their deviations from the
    mean are summed before they are squared (Liang and Zeger 1986). Where each sample is a group of
    its own, this is s / √M.
    """
    groups, row_M = np.unique(group_M, return_inverse=True)
    if len(groups) < 2:
        return np.full(len(value_KM), np.nan)
    belongs_MG = row_M[:, None] == np.arange(len(groups))
    sum_KG = (value_KM - value_KM.mean(1, keepdims=True)) @ belongs_MG
    variance_K = np.square(sum_KG).sum(1) * len(groups) / (len(groups) - 1)
    return np.sqrt(variance_K) / len(group_M)
