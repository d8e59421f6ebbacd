"""Samples of tokens compared with a background: observed and expected weights.

Shapes: G group, V token of the vocabulary.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Evidence:
    """Samples and their expectation. All arrays are [G, V], except that share may be [1, V]."""

    weight_GV: np.ndarray
    count_GV: np.ndarray
    """Weight on the scale of independent observations."""
    share_GV: np.ndarray
    """Share of each token in the background; all 0 for a group without background."""
    ratio_GV: np.ndarray
    """weight / background weight, 0 if both are 0. Unscaled, so that exact ties stay ties."""
    relative_GV: np.ndarray
    """weight / expected weight: the ratio, scaled so that 1 means no difference."""
    num_tokens_G: np.ndarray
    """Number of tokens that occur in sample or background."""

    @property
    def more_GV(self) -> np.ndarray:
        """Whether the sample has more of the token than expected."""
        return self.relative_GV > 1


def compare(
    sample_GV: np.ndarray, background_GV: np.ndarray, effective_G: np.ndarray | None
) -> Evidence:
    """Compare samples with their background, [G, V], or [1, V] for all groups.

    ``effective_G`` is the number of independent observations of each group; None means that the
    weights are counts.
    """
    assert (sample_GV >= 0).all()
    assert (background_GV >= 0).all()
    sample_G1, background_G1 = (w_GV.sum(1, keepdims=True) for w_GV in (sample_GV, background_GV))
    count_GV = sample_GV
    if effective_G is not None:
        count_GV = sample_GV * (effective_G[:, None] / np.where(sample_G1 > 0, sample_G1, 1))
    base_GV = with_floor(background_GV)
    ratio_GV = np.zeros(sample_GV.shape)
    np.divide(sample_GV, base_GV, out=ratio_GV, where=base_GV > 0)
    return Evidence(
        weight_GV=sample_GV,
        count_GV=count_GV,
        share_GV=base_GV / np.where(background_G1 > 0, background_G1, 1),
        ratio_GV=ratio_GV,
        relative_GV=ratio_GV * (background_G1 / np.where(sample_G1 > 0, sample_G1, 1)),
        num_tokens_G=((sample_GV > 0) | (background_GV > 0)).sum(1),
    )


def with_floor(background_GV: np.ndarray) -> np.ndarray:
    """Return the background with absent tokens set to half the weight of its rarest token."""
    rarest_G1 = np.where(background_GV > 0, background_GV, np.inf).min(
        1, keepdims=True, initial=np.inf
    )
    return np.maximum(background_GV, np.where(np.isfinite(rarest_G1), rarest_G1 / 2, 0))
