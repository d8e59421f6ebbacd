"""The strongest row of each wanted pair (group, datum): its step, position and shift.

Shapes: M row, K wanted pair, L datum that occurs here.
"""

from dataclasses import dataclass

import numpy as np

from analysis.attribution.outlier_weights import RowBatch
from analysis.attribution.sparse_sums import compact_items


@dataclass(frozen=True, eq=False)
class GroupDatumPairs:
    """Wanted pairs (group, datum), by group, then datum, without repeats."""

    group_K: np.ndarray
    datum_K: np.ndarray
    num_groups: int
    num_datums: int

    def index_of(self, group_M: np.ndarray, datum_M: np.ndarray) -> np.ndarray:
        """Return the pair of each row, -1 for none (also where ``group_M`` is -1), int32 [M]."""
        datum_L, local_M = compact_items(datum_M, self.num_datums)
        local_N = np.full(self.num_datums, -1, np.int32)
        local_N[datum_L] = np.arange(len(datum_L))
        local_K = local_N[self.datum_K]
        here_J = np.flatnonzero(local_K >= 0)
        pair_GL = np.full((self.num_groups + 1, len(datum_L)), -1, np.int32)
        pair_GL[self.group_K[here_J], local_K[here_J]] = here_J
        return pair_GL[group_M, local_M]  # group -1 indexes the last row, which has no pairs


@dataclass(frozen=True, eq=False)
class StrongestRows:
    """One row per pair: the one of largest |shift|.

    Ties go to the earliest step, then the first position, then the positive shift.
    """

    step_K: np.ndarray
    """int32; -1 where the pair has no row."""
    position_K: np.ndarray
    """int16"""
    shift_K: np.ndarray
    """float32; NaN where the pair has no row."""

    def better_of(self, other: "StrongestRows") -> "StrongestRows":
        """Return the stronger of the two rows of each pair."""
        first_K, second_K = self.order(), other.order()
        takes_K = np.zeros(len(self.step_K), bool)
        equal_K = np.ones(len(self.step_K), bool)
        for own_K, others_K in zip(first_K, second_K, strict=True):
            takes_K |= equal_K & (others_K > own_K)
            equal_K &= others_K == own_K
        names = vars(self)
        chosen = [np.where(takes_K, getattr(other, name), names[name]) for name in names]
        return StrongestRows(*chosen)

    def order(self) -> tuple[np.ndarray, ...]:
        """Return sort keys, most important first; the greatest wins, a missing row loses."""
        size_K = np.nan_to_num(np.abs(self.shift_K), nan=-1.0)
        return size_K, -self.step_K, -self.position_K, np.nan_to_num(self.shift_K)


def no_rows(num_pairs: int) -> StrongestRows:
    return StrongestRows(
        np.full(num_pairs, -1, np.int32),
        np.zeros(num_pairs, np.int16),
        np.full(num_pairs, np.nan, np.float32),
    )


def strongest_rows(rows: RowBatch, pair_M: np.ndarray, num_pairs: int) -> StrongestRows:
    """Return the strongest row of each pair; ``pair_M`` is the pair of each row, -1 for none."""
    row_M = np.flatnonzero(pair_M >= 0)
    pair_M, size_M = pair_M[row_M], np.abs(rows.shift_M[row_M])
    size_K = np.full(num_pairs, -1, np.float32)
    np.maximum.at(size_K, pair_M, size_M)
    largest_M = size_M == size_K[pair_M]
    row_J, pair_J = row_M[largest_M], pair_M[largest_M]
    step_J, position_J, shift_J = (
        values_M[row_J] for values_M in (rows.step_M, rows.position_M, rows.shift_M)
    )
    # Assignment by index keeps the last of equal indices, so the best row must come last.
    order_J = np.lexsort((shift_J, -position_J, -step_J))
    found, pair_J = no_rows(num_pairs), pair_J[order_J]
    found.step_K[pair_J] = step_J[order_J]
    found.position_K[pair_J] = position_J[order_J]
    found.shift_K[pair_J] = shift_J[order_J]
    return found
