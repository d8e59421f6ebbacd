"""The strongest row of each wanted (group, datum): when it happened, where in the window, how much.

Shapes: M row, K wanted pair, L datum that occurs here.
"""

from dataclasses import dataclass

import numpy as np

from analysis.attribution.outlier_weights import Piece
from analysis.attribution.sparse_sums import compacted


@dataclass(frozen=True, eq=False)
class Pairs:
    """Wanted (group, datum), by group, then datum, each once."""

    group_K: np.ndarray
    datum_K: np.ndarray
    num_groups: int
    num_datums: int

    def places(self, group_M: np.ndarray, datum_M: np.ndarray) -> np.ndarray:
        """Which pair each row is of, -1 for none (group_M of -1 included), int32 [M]."""
        datum_L, local_M = compacted(datum_M, self.num_datums)
        local_N = np.full(self.num_datums, -1, np.int32)
        local_N[datum_L] = np.arange(len(datum_L))
        local_K = local_N[self.datum_K]
        here_J = np.flatnonzero(local_K >= 0)
        place_GL = np.full((self.num_groups + 1, len(datum_L)), -1, np.int32)
        place_GL[self.group_K[here_J], local_K[here_J]] = here_J
        return place_GL[group_M, local_M]  # group -1 is the last row, which is empty


@dataclass(frozen=True, eq=False)
class Strongest:
    """One row a pair: the one of largest |shift|; of equal ones the first in time, then in place,
    then the positive one."""

    step_K: np.ndarray
    """int32; -1 where no row was met."""
    position_K: np.ndarray
    """int16"""
    shift_K: np.ndarray
    """float32; NaN where no row was met."""

    def better_of(self, other: "Strongest") -> "Strongest":
        """Of each pair the stronger of the two rows."""
        first_K, second_K = self.order(), other.order()
        takes_K = np.zeros(len(self.step_K), bool)
        equal_K = np.ones(len(self.step_K), bool)
        for own_K, others_K in zip(first_K, second_K, strict=True):
            takes_K |= equal_K & (others_K > own_K)
            equal_K &= others_K == own_K
        names = vars(self)
        chosen = [np.where(takes_K, getattr(other, name), names[name]) for name in names]
        return Strongest(*chosen)

    def order(self) -> tuple[np.ndarray, ...]:
        """What decides, greatest wins, most important first; none at all loses."""
        size_K = np.nan_to_num(np.abs(self.shift_K), nan=-1.0)
        return size_K, -self.step_K, -self.position_K, np.nan_to_num(self.shift_K)


def nothing(num_pairs: int) -> Strongest:
    return Strongest(
        np.full(num_pairs, -1, np.int32),
        np.zeros(num_pairs, np.int16),
        np.full(num_pairs, np.nan, np.float32),
    )


def strongest_rows(piece: Piece, place_M: np.ndarray, num_pairs: int) -> Strongest:
    """The strongest row of each pair; ``place_M`` is the pair of each row, -1 for none."""
    row_M = np.flatnonzero(place_M >= 0)
    place_M, size_M = place_M[row_M], np.abs(piece.shift_M[row_M])
    size_K = np.full(num_pairs, -1, np.float32)
    np.maximum.at(size_K, place_M, size_M)
    largest_M = size_M == size_K[place_M]
    row_J, place_J = row_M[largest_M], place_M[largest_M]
    step_J, position_J, shift_J = (
        values_M[row_J] for values_M in (piece.step_M, piece.position_M, piece.shift_M)
    )
    order_J = np.lexsort((shift_J, -position_J, -step_J))  # the best comes last and stays
    found, place_J = nothing(num_pairs), place_J[order_J]
    found.step_K[place_J] = step_J[order_J]
    found.position_K[place_J] = position_J[order_J]
    found.shift_K[place_J] = shift_J[order_J]
    return found
