"""A sparse dictionary of activations: directions of which few are needed for any one position.

Each activation is approximated by a sparse sum of atoms (Mairal et al. 2009, "Online dictionary
learning for sparse coding"); such atoms are often easier to name than single neurons (Cunningham
et al. 2023). This is scikit-learn's, without a network of its own: for widths up to some hundreds.

Shapes: M activation, C width, K atom.
"""

import warnings

import numpy as np
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

BATCH = 256
PASSES = 5
ALPHA = 1.0
"""Weight of the L1 penalty on the codes of activations of mean square 1."""


def sparse_dictionary(state_MC: np.ndarray, num_atoms: int, seed: int) -> np.ndarray:
    """Return atoms of length 1, [K, C], those with the largest summed codes first.

    Activations are centred and scaled to a mean square of 1. Atoms that no activation uses come
    last, and are no worse than random directions. Two calls with a seed give the same atoms.
    """
    centred_MC = state_MC - state_MC.mean(0)
    scale = float(np.sqrt(np.square(centred_MC).mean())) or 1.0
    learner = MiniBatchDictionaryLearning(
        num_atoms,
        alpha=ALPHA,
        max_iter=PASSES,
        batch_size=BATCH,
        random_state=seed,
        transform_algorithm="lasso_lars",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        code_MK = learner.fit(centred_MC / scale).transform(centred_MC[: 4 * BATCH] / scale)
    atom_KC = learner.components_
    atom_KC = atom_KC / np.linalg.norm(atom_KC, axis=1, keepdims=True).clip(1e-30)
    return atom_KC[np.argsort(-np.abs(code_MK).sum(0), kind="stable")]
