"""Compare the means of two samples of datums: tests and bootstrap intervals for many groups.

Shapes: K datum of a sample (Ka, Kb of the first and second), G group, B resample.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

NUMBERS_AT_ONCE = 2**23
"""Resamples × datums that are drawn at once."""
ROUNDING = 1e-12
"""A standard error below this share of the means is rounding: all datums are equal."""
PERCENTILES = (2.5, 97.5)
"""Percentiles of the interval's bounds."""


@dataclass(frozen=True)
class BootstrapSettings:
    """Number of bootstrap resamples, and their seed."""

    resamples: int
    seed: int


@dataclass(frozen=True, eq=False)
class Contrast:
    """First against second sample, each [G]; NaN where a value is undefined."""

    first_mean: np.ndarray
    second_mean: np.ndarray
    low: np.ndarray
    """95 % bootstrap interval of the difference of means."""
    high: np.ndarray
    p: np.ndarray
    """Two-sided p-value."""

    @property
    def difference(self) -> np.ndarray:
        return self.first_mean - self.second_mean

    @property
    def ratio(self) -> np.ndarray:
        """NaN where the second mean is 0."""
        return safe_divide(self.first_mean, self.second_mean)


def weighted_contrast(
    a_KG: np.ndarray, b_KG: np.ndarray, weight_K: np.ndarray, bootstrap: BootstrapSettings
) -> Contrast:
    """Welch's t-test of a plain mean against a weighted mean, both over independent datums.

    ``weight_K`` is the number of times that each datum of the second sample counts (as a control of
    several datums). The weighted mean has the variance s² Σw² / (Σw)², and (Σw)² / Σw² replaces the
    sample size in Welch's degrees of freedom. Matching makes the samples similar but not paired;
    treating them as independent is conservative.
    """
    share_K = weight_K / weight_K.sum()
    size_a, size_b = len(a_KG), 1 / (share_K**2).sum()
    mean_a_G, mean_b_G = a_KG.mean(0), share_K @ b_KG
    error_a_G = a_KG.var(0) / max(size_a - 1, 1)
    error_b_G = share_K @ (b_KG - mean_b_G) ** 2 / max(size_b - 1, 1)
    error_G = nonzero_error(np.sqrt(error_a_G + error_b_G), mean_a_G, mean_b_G)
    t_G = safe_divide(mean_a_G - mean_b_G, error_G)
    freedom_G = safe_divide(
        (error_a_G + error_b_G) ** 2,
        error_a_G**2 / max(size_a - 1, 1) + error_b_G**2 / max(size_b - 1, 1),
    )
    p_G = 2 * stats.t.sf(np.abs(t_G), freedom_G)
    rng = np.random.default_rng(bootstrap.seed)
    difference_BG = resampled_means(a_KG, np.ones(size_a), bootstrap.resamples, rng)
    difference_BG -= resampled_means(b_KG, weight_K, bootstrap.resamples, rng)
    low_G, high_G = np.percentile(difference_BG, PERCENTILES, axis=0)
    return Contrast(mean_a_G, mean_b_G, low_G, high_G, p_G)


def paired_contrast(a_KG: np.ndarray, b_KG: np.ndarray, bootstrap: BootstrapSettings) -> Contrast:
    """Paired t-test of two samples of the same datums, in the same order."""
    assert a_KG.shape == b_KG.shape
    size, difference_KG = len(a_KG), a_KG - b_KG
    mean_a_G, mean_b_G = a_KG.mean(0), b_KG.mean(0)
    error_G = difference_KG.std(0) / np.sqrt(max(size - 1, 1))
    t_G = safe_divide(mean_a_G - mean_b_G, nonzero_error(error_G, mean_a_G, mean_b_G))
    p_G = 2 * stats.t.sf(np.abs(t_G), max(size - 1, 1))
    rng = np.random.default_rng(bootstrap.seed)
    mean_BG = resampled_means(difference_KG, np.ones(size), bootstrap.resamples, rng)
    low_G, high_G = np.percentile(mean_BG, PERCENTILES, axis=0)
    return Contrast(mean_a_G, mean_b_G, low_G, high_G, p_G)


def nonzero_error(error_G: np.ndarray, mean_a_G: np.ndarray, mean_b_G: np.ndarray) -> np.ndarray:
    """Standard errors, with 0 for those that are only rounding."""
    return np.where(error_G > ROUNDING * (np.abs(mean_a_G) + np.abs(mean_b_G)), error_G, 0)


def resampled_means(
    x_KG: np.ndarray, weight_K: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Weighted means of ``resamples`` bootstrap samples of the datums, [B, G]."""
    num = len(x_KG)
    batch_size = max(1, NUMBERS_AT_ONCE // num)
    pieces = []
    for start in range(0, resamples, batch_size):
        size = min(batch_size, resamples - start)
        # Offsets make the rows of all samples distinct, so that one bincount counts them all.
        drawn_BK = rng.integers(num, size=(size, num)) + num * np.arange(size)[:, None]
        times_BK = np.bincount(drawn_BK.ravel(), minlength=size * num).reshape(size, num)
        weight_BK = times_BK * weight_K
        pieces.append(weight_BK @ x_KG / weight_BK.sum(1, keepdims=True))
    return np.concatenate(pieces)


def safe_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b != 0)
