"""Counting the tokens of datums.

Shapes: N datum, T position, K distinct datum of a sample, V token of the vocabulary.
"""

import numpy as np
from scipy.sparse import csr_array


def count_tokens(
    token_NT: np.ndarray, datum_K: np.ndarray, times_K: np.ndarray, num_tokens: int
) -> np.ndarray:
    """How often each token occurs in datums of which each is taken several times, int64 [V]."""
    token_KT = token_NT[datum_K]
    weight = np.repeat(times_K, token_NT.shape[1])
    # float64, which bincount adds in, is exact for whole numbers up to 2^53.
    return np.bincount(token_KT.ravel(), weight, minlength=num_tokens).astype(np.int64)


def token_matrix(token_NT: np.ndarray, num_tokens: int) -> csr_array:
    """How often each token occurs in each datum, float64 [N, V]."""
    num_datums, window = token_NT.shape
    first_N = np.arange(num_datums + 1) * window
    found = csr_array((np.ones(token_NT.size), token_NT.ravel(), first_N), (num_datums, num_tokens))
    found.sum_duplicates()
    return found
