"""Growth of small changes per step: the Lyapunov exponent of training, with its interval.

A growth factor is that of a small change of the weights from some step to another. The mean growth
of its logarithm per step is an estimate of the largest Lyapunov exponent. If it is above 0 for the
whole of training, training is chaotic: runs that differ by rounding end apart, and so does what is
predicted of other data from what is seen.

Source: Wolf et al. 1985, "Determining Lyapunov exponents from a time series".
Shapes: S step, in order.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

LIMIT = 1e3
"""Largest growth of a change at which a first-order prediction is taken as reliable. A datum's
shift is typically 1e-4 to 1e-3 of the weights. Grown by more than this it is as large as the
weights, where a derivative says nothing."""
BLOCKS = 16
"""Successive steps are correlated; the interval compares the means of so many blocks of steps."""


@dataclass(frozen=True)
class Exponent:
    """Mean growth of a logarithm per step, with its 95 % interval."""

    per_step: float
    low: float
    high: float
    num_steps: int
    """Number of steps that it was estimated from."""

    @property
    def chaotic(self) -> bool:
        """Whether small changes surely grow."""
        return self.low > 0


def exponent_of(growth_S: np.ndarray) -> Exponent:
    """Return the mean of the growth per step, with an interval from block means.

    ``growth_S``: changes of a logarithm from step to step. The interval is Student's, over at most
    ``BLOCKS`` means of successive steps; infinitely wide for fewer than two steps.
    """
    count = len(growth_S)
    if count < 2:
        mean = float(growth_S.mean()) if count else 0.0
        return Exponent(mean, -math.inf, math.inf, count)
    blocks = np.array_split(growth_S, min(BLOCKS, count))
    means = np.array([block.mean() for block in blocks])
    mean = float(growth_S.mean())
    half = float(stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means)))
    return Exponent(mean, mean - half, mean + half, count)


def reach(exponent: Exponent) -> float:
    """Return over how many steps changes grow by ``LIMIT``; infinity if they do not grow."""
    return math.log(LIMIT) / exponent.per_step if exponent.per_step > 0 else math.inf
