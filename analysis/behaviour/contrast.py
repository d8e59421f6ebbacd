"""Did one sample of datums get more than another? Means, an interval and a p for many groups.

Shapes: K datum of a sample (Ka, Kb of the first and second), G group, B resample.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

CELLS_AT_ONCE = 2**23
"""Numbers of resamples × datums drawn at once."""
ROUNDING = 1e-12
"""A standard error this small beside the means is rounding: all datums are alike."""
TAILS = (2.5, 97.5)
"""Percentiles that the interval lies between."""


@dataclass(frozen=True)
class Draw:
    """How a bootstrap draws."""

    resamples: int
    seed: int


@dataclass(frozen=True, eq=False)
class Contrast:
    """First against second sample, each [G]; NaN where the data cannot say."""

    first_mean: np.ndarray
    second_mean: np.ndarray
    low: np.ndarray
    """95 % bootstrap interval of the difference of means."""
    high: np.ndarray
    p: np.ndarray
    """Two-sided."""

    @property
    def difference(self) -> np.ndarray:
        return self.first_mean - self.second_mean

    @property
    def ratio(self) -> np.ndarray:
        """NaN where the second mean is 0."""
        return divide(self.first_mean, self.second_mean)


def weighted_contrast(
    a_KG: np.ndarray, b_KG: np.ndarray, weight_K: np.ndarray, draw: Draw
) -> Contrast:
    """Welch's test of a plain against a weighted mean of independent datums.

    ``weight_K`` says how often each datum of the second sample is meant (a control of several). Its
    mean has the variance s² Σw² / (Σw)², and (Σw)² / Σw² takes the place of the sample's size
    in Welch's degrees of freedom. Matching makes the two samples alike, not paired: the test takes
    them for independent, which errs to the safe side.
    """
    share_K = weight_K / weight_K.sum()
    size_a, size_b = len(a_KG), 1 / (share_K**2).sum()
    mean_a_G, mean_b_G = a_KG.mean(0), share_K @ b_KG
    error_a_G = a_KG.var(0) / max(size_a - 1, 1)
    error_b_G = share_K @ (b_KG - mean_b_G) ** 2 / max(size_b - 1, 1)
    error_G = real_error(np.sqrt(error_a_G + error_b_G), mean_a_G, mean_b_G)
    t_G = divide(mean_a_G - mean_b_G, error_G)
    freedom_G = divide(
        (error_a_G + error_b_G) ** 2,
        error_a_G**2 / max(size_a - 1, 1) + error_b_G**2 / max(size_b - 1, 1),
    )
    p_G = 2 * stats.t.sf(np.abs(t_G), freedom_G)
    rng = np.random.default_rng(draw.seed)
    difference_BG = resampled_means(a_KG, np.ones(size_a), draw.resamples, rng)
    difference_BG -= resampled_means(b_KG, weight_K, draw.resamples, rng)
    low_G, high_G = np.percentile(difference_BG, TAILS, axis=0)
    return Contrast(mean_a_G, mean_b_G, low_G, high_G, p_G)


def paired_contrast(a_KG: np.ndarray, b_KG: np.ndarray, draw: Draw) -> Contrast:
    """The paired t-test: both samples are of the same datums, in the same order."""
    assert a_KG.shape == b_KG.shape
    size, difference_KG = len(a_KG), a_KG - b_KG
    mean_a_G, mean_b_G = a_KG.mean(0), b_KG.mean(0)
    error_G = difference_KG.std(0) / np.sqrt(max(size - 1, 1))
    t_G = divide(mean_a_G - mean_b_G, real_error(error_G, mean_a_G, mean_b_G))
    p_G = 2 * stats.t.sf(np.abs(t_G), max(size - 1, 1))
    rng = np.random.default_rng(draw.seed)
    mean_BG = resampled_means(difference_KG, np.ones(size), draw.resamples, rng)
    low_G, high_G = np.percentile(mean_BG, TAILS, axis=0)
    return Contrast(mean_a_G, mean_b_G, low_G, high_G, p_G)


def real_error(error_G: np.ndarray, mean_a_G: np.ndarray, mean_b_G: np.ndarray) -> np.ndarray:
    """Standard errors, those that are only rounding as 0."""
    return np.where(error_G > ROUNDING * (np.abs(mean_a_G) + np.abs(mean_b_G)), error_G, 0)


def resampled_means(
    x_KG: np.ndarray, weight_K: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """The weighted mean of as many datums drawn with replacement, so many times, [B, G]."""
    num = len(x_KG)
    at_once = max(1, CELLS_AT_ONCE // num)
    pieces = []
    for start in range(0, resamples, at_once):
        some = min(at_once, resamples - start)
        drawn_BK = rng.integers(num, size=(some, num)) + num * np.arange(some)[:, None]
        times_BK = np.bincount(drawn_BK.ravel(), minlength=some * num).reshape(some, num)
        weight_BK = times_BK * weight_K
        pieces.append(weight_BK @ x_KG / weight_BK.sum(1, keepdims=True))
    return np.concatenate(pieces)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b != 0)
