"""Positive pointwise mutual information of neurons and datums (or tokens).

Raw counts are dominated by neurons that every datum moves and by datums that move every neuron.
Positive pointwise mutual information removes both effects (Church & Hanks 1990). With x_gc the
count of neuron g and column c, and a dot for a sum over that index, it is
max(0, log(x_gc · x_.. / (x_g. · x_.c))), in nats. Rows are then scaled to length 1, so the inner
product of two rows is their cosine similarity.

Shapes: G neuron (any row), C column (a datum or a token), M stored value of a sparse matrix.
"""

import numpy as np
from scipy.sparse import csr_array


def associations(count_GC: csr_array, times_C: np.ndarray | None = None) -> csr_array:
    """Return positive pointwise mutual information of counts ≥ 0, rows of length 1 (or all zero).

    ``times_C`` says how often each column occurs, as in a bootstrap sample of columns. The result
    has the inner products of the matrix that repeats each column that many times.
    """
    times_C = np.ones(count_GC.shape[1]) if times_C is None else times_C.astype(np.float64)
    row_M, column_M = rows_of(count_GC), count_GC.indices
    row_G, column_C = count_GC @ times_C, count_GC.sum(0)
    expected_M = row_G[row_M] * column_C[column_M] / max(row_G.sum(), 1e-300)
    kept_M = (count_GC.data > expected_M) & (expected_M > 0)
    row_M, column_M = row_M[kept_M], column_M[kept_M]
    # A factor √n in one column gives the inner product that n copies of the column would.
    value_M = np.log(count_GC.data[kept_M] / expected_M[kept_M]) * np.sqrt(times_C[column_M])
    length_G = np.sqrt(np.bincount(row_M, value_M**2, minlength=len(row_G)))
    value_M /= np.where(length_G > 0, length_G, 1)[row_M]
    start_G = np.searchsorted(row_M, np.arange(len(row_G) + 1))
    return csr_array((value_M, column_M, start_G), shape=count_GC.shape)


def rows_of(matrix_GC: csr_array) -> np.ndarray:
    """Return the row of each stored value, ascending, [M]."""
    return np.repeat(np.arange(matrix_GC.shape[0]), np.diff(matrix_GC.indptr))
