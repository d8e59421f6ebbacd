"""Wilson intervals of shares, which have a width even where a share is 0 or 1."""

import numpy as np

QUANTILE = 1.959963984540054
"""Quantile of the normal distribution at 0.975, for intervals of 95 %."""


def wilson(part: np.ndarray | float, whole: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of the 95 % Wilson interval of part / whole; NaN where whole is 0.

    ``part`` of ``whole`` independent trials succeeded (Wilson 1927). Where trials depend on each
    other, the interval is too narrow, but it is never of width 0, as a bootstrap is at 0 or 1.
    """
    k, n = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    count = np.where(n > 0, n, np.nan)
    share, spread = k / count, QUANTILE**2 / count
    middle = (share + spread / 2) / (1 + spread)
    reach = QUANTILE * np.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    # At 0 and 1 one bound is the share itself; rounding must not push it past.
    low, high = np.where(k == 0, 0, middle - reach), np.where(k == n, 1, middle + reach)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def wider(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of the smallest interval that holds both; NaN where either is NaN."""
    return np.minimum(one[0], other[0]), np.maximum(one[1], other[1])
