"""p-values from draws of a null."""

import numpy as np
from numpy.typing import ArrayLike

ROUNDING = 1e-12
"""A draw that is smaller than what was found by less than this reaches it."""


def p_value(found: float, null_D: ArrayLike) -> float:
    """Return (1 + draws that reach what was found) / (1 + draws).

    The 1 counts what was found as a draw, so that the p is valid for any number of draws (Davison
    and Hinkley 1997, equation 4.11).
    """
    null = np.asarray(null_D, np.float64)
    return float((1 + (null >= found - ROUNDING).sum()) / (1 + null.size))
