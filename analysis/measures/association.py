"""How much more of its evidence a neuron has from a datum (or token) than chance would give it.

Counts are dominated by what is busy anyway: neurons that everything moves, datums that move
everything. Positive pointwise mutual information takes both out (Church & Hanks 1990): with x_gc
the count of neuron g and column c and · a sum, max(0, log(x_gc · x_.. / (x_g. · x_.c))), in nats.
Rows are then scaled to length 1, so that the inner product of two rows is their cosine.

Shapes: G neuron (any row), C column: a datum or a token.
"""

import numpy as np
from scipy.sparse import csr_array


def associations(count_GC: csr_array, times_C: np.ndarray | None = None) -> csr_array:
    """Positive pointwise mutual information of nonnegative counts, rows of length 1 (or all zero).

    ``times_C`` says how often each column is there: the answer has the inner products of the matrix
    in which it stands that many times, which is what a bootstrap sample of columns is.
    """
    times_C = np.ones(count_GC.shape[1]) if times_C is None else times_C.astype(np.float64)
    row_M, column_M = rows_of(count_GC), count_GC.indices
    row_G, column_C = count_GC @ times_C, count_GC.sum(0)
    expected_M = row_G[row_M] * column_C[column_M] / max(row_G.sum(), 1e-300)
    kept_M = (count_GC.data > expected_M) & (expected_M > 0)
    row_M, column_M = row_M[kept_M], column_M[kept_M]
    value_M = np.log(count_GC.data[kept_M] / expected_M[kept_M]) * np.sqrt(times_C[column_M])
    length_G = np.sqrt(np.bincount(row_M, value_M**2, minlength=len(row_G)))
    value_M /= np.where(length_G > 0, length_G, 1)[row_M]
    start_G = np.searchsorted(row_M, np.arange(len(row_G) + 1))
    return csr_array((value_M, column_M, start_G), shape=count_GC.shape)


def rows_of(matrix_GC: csr_array) -> np.ndarray:
    """The row of each stored value, ascending."""
    return np.repeat(np.arange(matrix_GC.shape[0]), np.diff(matrix_GC.indptr))
