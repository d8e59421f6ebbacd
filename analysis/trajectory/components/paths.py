"""The path of a training through its outputs, along their first principal components.

Outputs at C checkpoints are C long vectors. Their Gram matrix is a sum over datums and holds all
that is needed: centred, its eigenvectors times the roots of its eigenvalues are the coordinates.
The same curve is called essential dynamics (Hoogland et al. 2024, "Loss landscape degeneracy and
stagewise development in transformers", appendix).

Shapes: C checkpoint, N datum, E entry of a datum, K component.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg


@dataclass(frozen=True, eq=False)
class Path:
    """Coordinates of the checkpoints along the first components."""

    place_CK: np.ndarray
    """Components in columns, each with its end above its start."""
    share_K: np.ndarray
    """Share of the variance over checkpoints in each component."""


def datum_grams(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the Gram matrix of each datum's outputs [N, E] at C checkpoints, float64 [N, C, C]."""
    stacked_NCE = (
        np.stack([row_NE[datum] for row_NE in outputs]).astype(np.float64)
        for datum in range(len(outputs[0]))
    )
    return np.stack([row_CE @ row_CE.T for row_CE in stacked_NCE])


def path_of(gram_CC: np.ndarray, components: int) -> Path:
    """Return the path whose Gram matrix this is, centred on the mean of the checkpoints.

    Components beyond the number of checkpoints less one are 0.
    """
    centred_CC = gram_CC - gram_CC.mean(0)
    centred_CC = centred_CC - centred_CC.mean(1, keepdims=True)
    value_C, vector_CC = linalg.eigh(centred_CC)
    value_C = value_C[::-1].clip(0)
    place_CK = (vector_CC[:, ::-1] * np.sqrt(value_C))[:, :components]
    place_CK = place_CK * np.where(place_CK[-1] < place_CK[0], -1, 1)
    return Path(place_CK, value_C[:components] / max(value_C.sum(), np.finfo(float).tiny))
