"""How far back in training a counterfactual can be trusted: the growth of the adjoint.

The adjoint λ_t is the derivative of a query by the weights before step t. Its growth from the last
step back to t is the factor by which a small change of the weights at t is amplified until the end
of training. The mean growth of log‖λ‖ per step is the largest Lyapunov exponent of training along
the query. If it is clearly above 0, training is chaotic: runs that differ by rounding end apart.

Beyond a growth of ``LIMIT`` a contribution is not reliable. A step's rounding (2^-24 relative) is
then amplified to about 1e-4 of the weights, and so it would still seem harmless; but a datum's own
shift, typically 1e-4 to 1e-3 of the weights, is amplified to the size of the weights, where a
first-order derivative says nothing.

Source: Wolf et al. 1985, "Determining Lyapunov exponents from a time series".
Shapes: S step, in the order of training.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

LIMIT = 1e3
"""Largest growth of the adjoint that keeps a contribution reliable."""
BLOCKS = 16
"""Successive steps are correlated; the interval compares the means of so many blocks of steps."""


@dataclass(frozen=True)
class Exponent:
    """Mean growth of a logarithm per step, with its 95 % interval."""

    per_step: float
    low: float
    high: float
    num_steps: int

    @property
    def chaotic(self) -> bool:
        """Whether small changes surely grow."""
        return self.low > 0


@dataclass(frozen=True)
class Horizon:
    """Growth of one query's adjoint over a sweep."""

    exponent: Exponent
    growth: float
    """‖λ‖ at the first step of the sweep / ‖λ‖ at the end of training."""
    largest: float
    """The largest such ratio of any step."""
    first_reliable: int
    """Contributions of this step and all later ones are reliable; those of earlier ones are not."""


def horizon(norm_S: np.ndarray, norm_at_end: float, first_step: int = 0) -> Horizon:
    """Return the horizon of a query.

    ``norm_S``: ‖λ‖ before each step of the sweep, in the order of training, from ``first_step`` on.
    ``norm_at_end``: norm of the query's gradient by the last weights; 0 gives no growth.
    """
    path = np.append(norm_S, norm_at_end).astype(np.float64)
    if not norm_at_end > 0:
        return Horizon(exponent_of(np.zeros(len(norm_S))), 1.0, 1.0, first_step)
    growth = path / norm_at_end
    limits = np.finfo(np.float64)
    logarithm = np.log(np.clip(growth, limits.tiny, limits.max))
    beyond = np.flatnonzero(~(growth[:-1] <= LIMIT))
    reliable = first_step + (int(beyond[-1]) + 1 if len(beyond) else 0)
    backward = -np.diff(logarithm)[::-1]
    return Horizon(
        exponent_of(backward),
        float(growth[0]),
        float(growth.max()),
        reliable,
    )


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
