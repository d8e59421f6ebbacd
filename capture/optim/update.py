"""Clipping, and the error measures by which the audit compares shifts with the applied change.

Under SGD the shift due to datum i is −lr · clip · g_i, with g_i the gradient of the datum's share
of the batch's mean loss. The shifts add up to the update (law 1). The audit compares their sum with
the weights after the step minus the weights before it.

Shapes: P all captured parameters.
"""

import math

from torch import Tensor

BFLOAT16_ROUNDING = 2.0**-8
"""Unit roundoff of bfloat16: the largest relative error of rounding to nearest."""
ROUNDING = 2.0**-24
"""Unit roundoff of float32."""


def clip_factor(norm: float, limit: float) -> float:
    """Return the factor by which ``torch.nn.utils.clip_grad_norm_`` multiplies the gradient."""
    return min(1.0, limit / (norm + 1e-6))


def relative_error(found_P: Tensor, wanted_P: Tensor) -> float:
    """Return ‖found − wanted‖ / ‖wanted‖; 0 if both norms are 0, infinity if only the latter is."""
    missed, size = (found_P - wanted_P).norm().item(), wanted_P.norm().item()
    return missed / size if size else (math.inf if missed else 0.0)


def rounding_error(before_P: Tensor, after_P: Tensor) -> float:
    """Return a bound on the relative error of the applied change from storing float32 weights.

    A weight θ is stored to within 2^-24 · |θ|, so that ‖error‖ ≤ 2^-24 ‖θ‖. This matters if the
    change is tiny beside the weights; no datum accounts for it. The audit allows no more than this.
    """
    moved = (after_P - before_P).norm().item()
    return ROUNDING * after_P.norm().item() / moved if moved else 0.0
