"""Null models of a matrix parameters × steps: what a spectrum looks like without structure.

- gaussian: independent normal entries of the same shape. Its Gram matrix has a Wishart
  distribution, drawn by Bartlett's decomposition (Bartlett 1933) without the P × S entries.
- norms kept: every step keeps its length, and its direction is uniformly random.
- random edge: the largest singular value of a large matrix of independent entries (Marchenko and
  Pastur 1967). What lies above it is not noise of equal strength in all entries.

Shapes: P entry of a parameter, S step.
"""

from typing import Literal, get_args

import numpy as np

from analysis.spectra.gram import inverse_lengths

Null = Literal["gaussian", "norms kept"]
NULLS: tuple[Null, ...] = get_args(Null)


def null_gram(null: Null, gram_SS: np.ndarray, entries: int, rng: np.random.Generator):
    """Draw the Gram matrix of a null of a matrix with this Gram matrix, float64 [S, S].

    ``entries``: P, the length of a step. The gaussian null has the same expected square sum.
    """
    drawn_SS = wishart(entries, len(gram_SS), rng)
    if null == "gaussian":
        return drawn_SS * (np.trace(gram_SS) / (entries * len(gram_SS)))
    scale_S = inverse_lengths(drawn_SS) * np.sqrt(np.diag(gram_SS).clip(0))
    return drawn_SS * np.multiply.outer(scale_S, scale_S)


def random_edge(square_sum: float, entries: int, steps: int) -> float:
    """Return σ (√P + √S), the upper Marchenko–Pastur edge of singular values.

    ``square_sum``: of all entries, P S σ².
    """
    return float(np.sqrt(square_sum) * (steps**-0.5 + entries**-0.5))


def wishart(entries: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Draw XᵀX for X of ``entries`` × ``steps`` independent standard normal numbers."""
    if entries < steps:
        row_SP = rng.normal(size=(steps, entries))
        return row_SP @ row_SP.T
    factor_SS = np.tril(rng.normal(size=(steps, steps)), -1)
    np.fill_diagonal(factor_SS, np.sqrt(rng.chisquare(entries - np.arange(steps))))
    return factor_SS @ factor_SS.T
