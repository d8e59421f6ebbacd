"""False discovery rates of many tests at once.

Shapes: K test (of one family), … any leading axes, one family each.
"""

import numpy as np


def benjamini_hochberg(p_K: np.ndarray, num_tests: np.ndarray | int | None = None) -> np.ndarray:
    """Return the Benjamini–Hochberg adjusted p (q-value) of each p along the last axis.

    Keeping the tests with q ≤ α holds the false discovery rate at α (Benjamini & Hochberg 1995).
    The q of the i-th smallest p is the minimum of p_j · m / j over j ≥ i, at most 1. ``num_tests``
    is m for each family, by default the length of the axis. It is larger than the axis if tests
    with p = 1 are left out, and smaller if the axis is padded; padding must have p = 1. A NaN, for
    a test that could not be computed, counts as 1 and stays NaN.
    """
    from scipy import stats  # here, because importing it takes half a second

    length = p_K.shape[-1]
    m = np.asarray(length if num_tests is None else num_tests)[..., None]
    # SciPy takes m to be the length of the axis. q is linear in p up to its cap of 1, so scaling p
    # by m / length gives the q of m tests. A p of 1 has q = 1 at any m and stays as it is.
    scaled_K = np.where(p_K < 1, np.minimum(p_K * (m / length), 1), 1.0)
    q_K = stats.false_discovery_control(scaled_K, axis=-1)
    return np.where(np.isnan(p_K), np.nan, q_K)
