"""A job over outlier shards: what some datums did to each part of the model.

Parts (cells) are the finest division that the levels asked for have in common, so one pass over the
rows serves units, heads and neurons together.

Shapes: P captured parameter, N datum of the corpus, K chosen datum, J chosen datum of a shard,
C cell, G group of a level, M row, T position.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from analysis.jobs import Rows, merge_all
from analysis.levels import Groups
from analysis.scan import REMEDY, checked_datums, parameter_columns
from capture.errors import ShardError
from capture.gradients import Layout

COLUMNS = ("unit", "index", "datum", "position", "shift")


@dataclass(frozen=True, eq=False)
class Cells:
    """The finest parts that some levels are made of."""

    cell_P: np.ndarray
    """The cell of each captured parameter, int64."""
    levels: list[Groups]
    group_LC: np.ndarray
    """The group of each cell at each level, -1 for none."""

    @property
    def num_cells(self) -> int:
        return self.group_LC.shape[1]

    def at(self, level: int, x_KC: np.ndarray) -> np.ndarray:
        """Sums over the cells of each named group of a level, [K, G]."""
        groups, group_C = self.levels[level], self.group_LC[level]
        member_M = np.flatnonzero(group_C >= 0)
        ones_M = np.ones(len(member_M), x_KC.dtype)
        shape = (self.num_cells, groups.num_groups)
        member_CG = sparse.csr_array((ones_M, (member_M, group_C[member_M])), shape)
        return np.asarray(x_KC @ member_CG)[:, : groups.num_named]


def cells_of(levels: Sequence[Groups]) -> Cells:
    key_LP = np.stack([groups.group_P for groups in levels])
    group_LC, cell_P = np.unique(key_LP, axis=1, return_inverse=True)
    return Cells(cell_P.ravel(), list(levels), group_LC)


@dataclass(frozen=True, eq=False)
class DatumSums:
    """What some of the chosen datums did to every cell."""

    chosen_J: np.ndarray
    """Places among the chosen datums, ascending, each once."""
    rows_JC: np.ndarray
    """Outlier rows, int64."""
    marked_JC: np.ndarray
    """Those of them at marked positions, int64."""
    shift_JC: np.ndarray
    """Σ |shift|, float64."""


@dataclass(frozen=True, eq=False)
class SumByDatum:
    """The job that adds up rows and |shift| by chosen datum and cell.

    The answer takes 24 bytes a chosen datum and cell (1,250 cells of the study's model and 12,000
    datums: 360 MB); a shard's partial result only holds the datums that occur in it.
    """

    layout: Layout
    cells: Cells
    chosen_N: np.ndarray
    """The place of each datum among the chosen, -1 for none."""
    num_chosen: int
    marked_KT: np.ndarray
    """Whether a position of a chosen datum is marked."""

    def map_shard(self, shard: Rows) -> DatumSums:
        num_cells = self.cells.num_cells
        pieces = [nothing(np.arange(0), num_cells)]
        for batch in shard.batches(COLUMNS):
            parameter_M = parameter_columns(batch, self.layout, shard.where)
            chosen_M = self.chosen_N[checked_datums(batch, len(self.chosen_N), shard.where)]
            kept_M = np.flatnonzero(chosen_M >= 0)
            if not len(kept_M):
                continue
            position_M = batch["position"].to_numpy()[kept_M]
            self.check_positions(position_M, shard.where)
            shift_M = np.abs(batch["shift"].to_numpy()[kept_M])
            cell_M, chosen_M = self.cells.cell_P[parameter_M[kept_M]], chosen_M[kept_M]
            marked_M = self.marked_KT[chosen_M, position_M]
            pieces.append(sum_rows(cell_M, chosen_M, marked_M, shift_M, num_cells))
        return merge_all(pieces, self.merge)

    def merge(self, a: DatumSums, b: DatumSums) -> DatumSums:
        if not len(b.chosen_J) or not len(a.chosen_J):
            return a if len(a.chosen_J) else b
        whole = nothing(np.union1d(a.chosen_J, b.chosen_J), self.cells.num_cells)
        for part in (a, b):
            place_J = np.searchsorted(whole.chosen_J, part.chosen_J)
            whole.rows_JC[place_J] += part.rows_JC
            whole.marked_JC[place_J] += part.marked_JC
            whole.shift_JC[place_J] += part.shift_JC
        return whole

    def finish(self, partial: DatumSums) -> DatumSums:
        """All chosen datums, in order; those without rows have zeros."""
        return self.merge(nothing(np.arange(self.num_chosen), self.cells.num_cells), partial)

    def check_positions(self, position_M: np.ndarray, where: str) -> None:
        window = self.marked_KT.shape[1]
        if not 0 <= position_M.min() <= position_M.max() < window:
            problem = (
                f"has positions {position_M.min()} to {position_M.max()} in windows of {window}"
            )
            raise ShardError(where, problem, REMEDY)


def nothing(chosen_J: np.ndarray, num_cells: int) -> DatumSums:
    """No rows of these chosen datums."""
    rows_JC, marked_JC = (np.zeros((len(chosen_J), num_cells), np.int64) for _ in range(2))
    return DatumSums(chosen_J, rows_JC, marked_JC, np.zeros(rows_JC.shape))


def sum_rows(
    cell_M: np.ndarray,
    chosen_M: np.ndarray,
    marked_M: np.ndarray,
    shift_M: np.ndarray,
    num_cells: int,
) -> DatumSums:
    """Rows of chosen datums, added up."""
    place_K = np.zeros(int(chosen_M.max()) + 1, np.int64)
    place_K[chosen_M] = 1
    chosen_J = np.flatnonzero(place_K)
    place_K[chosen_J] = np.arange(len(chosen_J))
    key_M = place_K[chosen_M] * num_cells + cell_M
    shape = (len(chosen_J), num_cells)
    size = len(chosen_J) * num_cells
    return DatumSums(
        chosen_J,
        np.bincount(key_M, minlength=size).reshape(shape),
        np.bincount(key_M[marked_M], minlength=size).reshape(shape),
        np.bincount(key_M, shift_M, size).reshape(shape),
    )
