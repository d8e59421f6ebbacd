"""What a spectrum of singular values says in a few numbers.

- values over the cutoff: how many exceed a share of the largest. The count is not invariant: it
  depends on the largest value alone, so it stands beside the two others.
- stable rank: Σ s² / s₁² (Rudelson and Vershynin 2007, "Sampling from large matrices").
- participation ratio: (Σ s²)² / Σ s⁴, the number of equal values with the same concentration.

Shapes: K singular value.
"""

from dataclasses import dataclass

import numpy as np

CUTOFF = 0.1
"""Share of the largest singular value below which a direction is left uncounted."""


@dataclass(frozen=True)
class Numbers:
    """Numbers of one spectrum; all 0 for a matrix of zeros."""

    over_cutoff: float
    """Singular values above the cutoff."""
    stable_rank: float
    participation_ratio: float
    largest: float
    """The largest singular value."""


NAMES = ("over_cutoff", "stable_rank", "participation_ratio", "largest")
"""Fields of ``Numbers``, as columns of tables."""


def numbers_of(value_K: np.ndarray, cutoff: float = CUTOFF) -> Numbers:
    """Return the numbers of singular values [K], in any order.

    ``cutoff``: share of the largest value.
    """
    largest = float(value_K.max(initial=0.0))
    if not largest > 0:
        return Numbers(0.0, 0.0, 0.0, 0.0)
    square_K = np.square(value_K / largest)
    total = float(square_K.sum())
    ratio = total**2 / float(np.square(square_K).sum())
    return Numbers(float((value_K > cutoff * largest).sum()), total, ratio, largest)
