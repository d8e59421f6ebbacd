"""From gradients to applied shifts, and the audit that nothing was lost on the way.

Under SGD the share of datum i in an update is -lr · clip · g_i, with g_i the gradient of the
datum's share of the batch's mean loss. The shares add up to the whole update (law 1), which the
training loop checks against the weights themselves: before the step and after it.

Shapes: P all captured parameters.
"""

import math

from torch import Tensor

BFLOAT16_ROUNDING = 2.0**-8
"""Half a unit in the last place of a bfloat16, relative to its value, at most."""
ROUNDING = 2.0**-24
"""Half a unit in the last place of a float32, relative to its value."""


def clip_factor(norm: float, limit: float) -> float:
    """What clipping multiplies the gradient by, as ``torch.nn.utils.clip_grad_norm_`` has it."""
    return min(1.0, limit / (norm + 1e-6))


def relative_error(found_P: Tensor, wanted_P: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖; 0 where both are 0."""
    missed, size = (found_P - wanted_P).norm().item(), wanted_P.norm().item()
    return missed / size if size else (math.inf if missed else 0.0)


def rounding_error(before_P: Tensor, after_P: Tensor) -> float:
    """How far storing the weights as float32 may itself put the applied change off, relatively.

    A weight θ is kept to within 2^-24 · |θ|, so of a change that is tiny beside the weights a part
    is rounded away that belongs to no datum. The audit allows for this much and no more.
    """
    moved = (after_P - before_P).norm().item()
    return ROUNDING * after_P.norm().item() / moved if moved else 0.0
