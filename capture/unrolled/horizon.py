"""How far back in training a counterfactual can be trusted: the growth of the adjoint.

The adjoint λ_t is the derivative of a query by the weights before step t. Its growth from the last
step back to t is the factor by which a small change of the weights at t is amplified until the end
of training (``capture.estimates.growth``). Beyond a growth of ``LIMIT`` a contribution is not
reliable, for two reasons: rounding is amplified as well, and the amplified change is no longer
small, so that a derivative says nothing about it. Beyond a growth of ``BEARABLE`` nothing is left
of it, and a sweep can stop.

Shapes: S step, in the order of training.
"""

from dataclasses import dataclass

import numpy as np

from capture.estimates.growth import LIMIT, Exponent, exponent_of

BEARABLE = 2.0**23
"""Growth at which the rounding of float32, 2⁻²³ of the weights, has become as large as the weights.
No digit of an earlier contribution is right."""


@dataclass(frozen=True)
class Horizon:
    """Growth of one query's adjoint over a sweep."""

    exponent: Exponent
    growth: float
    """‖λ‖ at ``computed_from`` / ‖λ‖ at the end of training."""
    largest: float
    """The largest such ratio of any step."""
    first_reliable: int
    """Contributions of this step and all later ones are reliable; those of earlier ones are not."""
    computed_from: int
    """First step of the sweep, or the step at which it gave the query up."""


def horizon(norm_S: np.ndarray, norm_at_end: float, first_step: int = 0) -> Horizon:
    """Return the horizon of a query.

    ``norm_S``: ‖λ‖ before each step of the sweep, in the order of training, from ``first_step`` on;
    NaN for steps before the one at which the sweep gave the query up.
    ``norm_at_end``: norm of the query's gradient by the last weights; 0 gives no growth.
    """
    if not norm_at_end > 0:
        return Horizon(exponent_of(np.zeros(len(norm_S))), 1.0, 1.0, first_step, first_step)
    num_left_out = int(np.isnan(norm_S).sum())
    first_step += num_left_out
    growth = np.append(norm_S[num_left_out:], norm_at_end).astype(np.float64) / norm_at_end
    limits = np.finfo(np.float64)
    logarithm = np.log(np.clip(growth, limits.tiny, limits.max))
    beyond = np.flatnonzero(growth[:-1] > LIMIT)
    return Horizon(
        exponent_of(-np.diff(logarithm)[::-1]),
        growth=float(growth[0]),
        largest=float(growth.max()),
        first_reliable=first_step + (int(beyond[-1]) + 1 if len(beyond) else 0),
        computed_from=first_step,
    )
