"""Many tests at once: how many of the findings may be false?

Shapes: K test (of one family), … any leading axes, one family each.
"""

import numpy as np


def benjamini_hochberg(p_K: np.ndarray, num_tests: np.ndarray | int | None = None) -> np.ndarray:
    """The q of each p along the last axis: keep q ≤ α and at most a share α of it is false.

    Benjamini & Hochberg (1995), as adjusted values: q of the i-th smallest p is the least of
    p_j · m / j over j ≥ i, at most 1. ``num_tests`` is m of each family (by default the length of
    the axis): larger than that axis where tests are left out whose p is 1, smaller where entries
    are no tests; those must have p = 1. NaN, for a test that could not be made, counts as 1 and
    stays NaN.
    """
    m = np.asarray(p_K.shape[-1] if num_tests is None else num_tests)[..., None]
    order_K = np.argsort(p_K, axis=-1, kind="stable")  # NaN goes last
    q_K = np.take_along_axis(np.nan_to_num(p_K, nan=1.0), order_K, -1)
    q_K *= m / np.arange(1, p_K.shape[-1] + 1)
    q_K = np.minimum(np.minimum.accumulate(q_K[..., ::-1], axis=-1)[..., ::-1], 1)
    found_K = np.empty_like(q_K)
    np.put_along_axis(found_K, order_K, q_K, -1)
    return np.where(np.isnan(p_K), np.nan, found_K)
