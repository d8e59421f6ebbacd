"""The spectrum of a matrix parameters × steps, from its Gram matrix steps × steps.

With C the matrix and G = CᵀC, the eigenvalues of G are the squared singular values of C and its
eigenvectors are the right singular vectors V; the left ones are C V / s. G is a sum over the rows
of C, so that it can be added up in pieces of parameters, in any order, and C never exists as a
whole. Every treatment of the steps below is C W for some matrix W, hence Wᵀ G W for G.

Singular values below about 1e-7 of the largest are rounding: G holds their squares in float64.

Shapes: P entry of a parameter, S step of the matrix, R step that is kept, K direction.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg

ENTRIES_AT_ONCE = 2**15
"""Columns of a piece that are converted to float64 at a time."""


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What is done to the steps before the decomposition, in the order of the fields."""

    skip: int = 0
    """First steps that are left out."""
    subtract_mean: bool = False
    """Subtract the mean over steps from each entry."""
    unit_length: bool = False
    """Scale every step to length 1, so that late steps, which are smaller, count as much."""

    @property
    def name(self) -> str:
        """The treatment in words, as in tables."""
        parts = [f"first {self.skip} steps left out"] if self.skip else []
        parts += ["mean subtracted"] if self.subtract_mean else []
        parts += ["unit length"] if self.unit_length else []
        return ", ".join(parts) or "as recorded"


def gram_of(row_SP: np.ndarray) -> np.ndarray:
    """Return the Gram matrix of the steps, float64 [S, S]; entries may be float32."""
    gram_SS = np.zeros((len(row_SP), len(row_SP)))
    for first in range(0, row_SP.shape[1], ENTRIES_AT_ONCE):
        part_SP = row_SP[:, first : first + ENTRIES_AT_ONCE].astype(np.float64)
        gram_SS += part_SP @ part_SP.T
    return gram_SS


def treated(gram_SS: np.ndarray, treatment: Treatment) -> np.ndarray:
    """Return the Gram matrix of the treated steps, float64 [R, R]."""
    gram_RR = gram_SS[treatment.skip :, treatment.skip :].copy()
    if treatment.subtract_mean:
        gram_RR -= gram_RR.mean(0)
        gram_RR -= gram_RR.mean(1, keepdims=True)
    if treatment.unit_length:
        gram_RR *= np.multiply.outer(*[inverse_lengths(gram_RR)] * 2)
    return gram_RR


def treatment_matrix(gram_SS: np.ndarray, treatment: Treatment) -> np.ndarray:
    """Return W with which C W is the treated matrix, float64 [S, R]."""
    matrix_SR = np.eye(len(gram_SS))[:, treatment.skip :]
    if treatment.subtract_mean:
        matrix_SR = matrix_SR - matrix_SR.mean(1, keepdims=True)
    if treatment.unit_length:
        without = Treatment(skip=treatment.skip, subtract_mean=treatment.subtract_mean)
        matrix_SR = matrix_SR * inverse_lengths(treated(gram_SS, without))
    return matrix_SR


def inverse_lengths(gram_RR: np.ndarray) -> np.ndarray:
    """Return 1 / ‖step‖, [R]; 0 for a step that is zero."""
    length_R = np.sqrt(np.diag(gram_RR).clip(0))
    # A mean that is subtracted leaves rounding where all steps are equal.
    there_R = length_R > 1e-12 * length_R.max(initial=0.0)
    return np.divide(1, length_R, out=np.zeros_like(length_R), where=there_R)


# --- decomposition --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Singular values and right singular vectors of the treated matrix, largest first."""

    value_K: np.ndarray
    right_RK: np.ndarray
    """Orthonormal columns; the entry of largest absolute value is positive."""

    @property
    def rank(self) -> int:
        """Number of singular values that are not rounding."""
        return int((self.value_K > 1e-7 * self.value_K.max(initial=0.0)).sum())

    def centres(self, step_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation, [K] each, of the step, weighted by v²."""
        weight_RK = np.square(self.right_RK)
        mean_K = step_R @ weight_RK
        return mean_K, np.sqrt((np.square(step_R) @ weight_RK - mean_K**2).clip(0))


def singular_values(gram_RR: np.ndarray) -> np.ndarray:
    """Return the singular values of the matrix with this Gram matrix, descending [K = R]."""
    return np.sqrt(linalg.eigvalsh(gram_RR)[::-1].clip(0))


def decompose(gram_RR: np.ndarray, most: int | None = None) -> Decomposition:
    """Return all singular values and the first ``most`` right vectors (default: all)."""
    square_K, vector_RK = linalg.eigh(gram_RR)
    right_RK = vector_RK[:, ::-1][:, :most]
    largest_K = np.abs(right_RK).argmax(0)
    sign_K = np.where(np.take_along_axis(right_RK, largest_K[None], 0)[0] < 0, -1.0, 1.0)
    return Decomposition(np.sqrt(square_K[::-1].clip(0)), right_RK * sign_K)


def coefficients(matrix_SR: np.ndarray, found: Decomposition, count: int) -> np.ndarray:
    """Return A with which C A holds the first ``count`` left singular vectors, [S, count].

    Directions whose singular value is rounding get 0.
    """
    count_there = min(count, found.rank)
    coefficient_SK = np.zeros((len(matrix_SR), count))
    value_K = found.value_K[:count_there]
    coefficient_SK[:, :count_there] = matrix_SR @ found.right_RK[:, :count_there] / value_K
    return coefficient_SK
