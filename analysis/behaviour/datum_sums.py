"""Sum the outlier rows of chosen datums by part of the model: a job over outlier shards.

A cell is the intersection of one group of each level. Groups of all levels are sums of cells, so
one pass over the rows serves units, heads and neurons.

Shapes: P captured parameter, N datum of the corpus, K chosen datum, J chosen datum of a shard,
C cell, G group of a level, M row, T position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse

from analysis.jobs.job import Rows, merge_all
from analysis.levels import Groups
from analysis.run.scan import REMEDY, checked_datums, parameter_columns
from capture.errors import ShardError
from capture.gradients.layout import Layout

ROWS_AT_ONCE = 2**22
"""Rows that are summed at once; each takes about 40 bytes of memory."""
COLUMNS = ("unit", "index", "datum", "position", "shift")


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of some levels."""

    cell_P: np.ndarray
    """The cell of each captured parameter, int64."""
    levels: list[Groups]
    group_LC: np.ndarray
    """The group of each cell in each level, -1 for none."""

    @property
    def num_cells(self) -> int:
        return self.group_LC.shape[1]

    def at(self, level: int, x_KC: np.ndarray) -> np.ndarray:
        """Sums over the cells of each named group of the level with this index, [K, G]."""
        groups, group_C = self.levels[level], self.group_LC[level]
        member_M = np.flatnonzero(group_C >= 0)
        ones_M = np.ones(len(member_M), x_KC.dtype)
        shape = (self.num_cells, groups.num_groups)
        member_CG = sparse.csr_array((ones_M, (member_M, group_C[member_M])), shape)
        return np.asarray(x_KC @ member_CG)[:, : groups.num_named]


def finest_cells(levels: Sequence[Groups]) -> Cells:
    """The cells of these levels: one for each combination of groups that occurs."""
    key_LP = np.stack([groups.group_P for groups in levels])
    group_LC, cell_P = np.unique(key_LP, axis=1, return_inverse=True)
    return Cells(cell_P.ravel(), list(levels), group_LC)


@dataclass(frozen=True, eq=False)
class ChosenRows:
    """Outlier rows of chosen datums."""

    cell_M: np.ndarray
    chosen_M: np.ndarray
    """Index of the datum among the chosen."""
    marked_M: np.ndarray
    """Whether the row's position is marked."""
    shift_M: np.ndarray
    """|shift|."""


@dataclass(frozen=True, eq=False)
class DatumSums:
    """Sums of outlier rows of some chosen datums by cell."""

    chosen_J: np.ndarray
    """Indices of the chosen datums, ascending and unique."""
    rows_JC: np.ndarray
    """Number of outlier rows, int32."""
    marked_JC: np.ndarray
    """Number of outlier rows at marked positions, int32."""
    shift_JC: np.ndarray
    """Σ|shift|, float64."""


@dataclass(frozen=True, eq=False)
class SumRowsByDatum:
    """A job that sums rows and |shift| by chosen datum and cell.

    The result takes 16 bytes per chosen datum and cell: 240 MB for 12,000 datums and the 1,260
    cells of the study's model, and three times that during the last merge. The partial result of a
    shard holds only the datums that occur in it.
    """

    layout: Layout
    cells: Cells
    chosen_N: np.ndarray
    """Index of each datum among the chosen, -1 for others."""
    num_chosen: int
    marked_KT: np.ndarray
    """Whether each position of a chosen datum is marked, bool."""

    def map_shard(self, shard: Rows) -> DatumSums:
        # The arrays of sums are much larger than a batch (a row group), so many batches are summed
        # at once.
        pieces, pending, num_pending = [zero_sums(np.arange(0), self.cells.num_cells)], [], 0
        for batch in shard.batches(COLUMNS):
            pending.append(self.chosen_rows(batch, shard.where))
            num_pending += len(pending[-1].cell_M)
            if num_pending >= ROWS_AT_ONCE:
                pieces.append(sum_rows(pending, self.cells.num_cells))
                pending, num_pending = [], 0
        if num_pending:
            pieces.append(sum_rows(pending, self.cells.num_cells))
        return merge_all(pieces, self.merge)

    def chosen_rows(self, batch: pa.RecordBatch, where: str) -> ChosenRows:
        """The rows of chosen datums. Raises ``ShardError`` for impossible values."""
        parameter_M = parameter_columns(batch, self.layout, where)
        chosen_M = self.chosen_N[checked_datums(batch, len(self.chosen_N), where)]
        kept_M = np.flatnonzero(chosen_M >= 0)
        position_M = batch["position"].to_numpy()[kept_M]
        self.check_positions(position_M, where)
        return ChosenRows(
            self.cells.cell_P[parameter_M[kept_M]],
            chosen_M[kept_M],
            self.marked_KT[chosen_M[kept_M], position_M],
            np.abs(batch["shift"].to_numpy()[kept_M]),
        )

    def merge(self, a: DatumSums, b: DatumSums) -> DatumSums:
        if not len(b.chosen_J) or not len(a.chosen_J):
            return a if len(a.chosen_J) else b
        whole = zero_sums(np.union1d(a.chosen_J, b.chosen_J), self.cells.num_cells)
        for part in (a, b):
            row_J = np.searchsorted(whole.chosen_J, part.chosen_J)
            whole.rows_JC[row_J] += part.rows_JC
            whole.marked_JC[row_J] += part.marked_JC
            whole.shift_JC[row_J] += part.shift_JC
        return whole

    def finish(self, partial: DatumSums) -> DatumSums:
        """Sums of all chosen datums, in order; datums without rows have zeros."""
        return self.merge(zero_sums(np.arange(self.num_chosen), self.cells.num_cells), partial)

    def check_positions(self, position_M: np.ndarray, where: str) -> None:
        window = self.marked_KT.shape[1]
        if len(position_M) and not 0 <= position_M.min() <= position_M.max() < window:
            problem = (
                f"has positions {position_M.min()} to {position_M.max()} in windows of {window}"
            )
            raise ShardError(where, problem, REMEDY)


def zero_sums(chosen_J: np.ndarray, num_cells: int) -> DatumSums:
    """Sums that are zero for these chosen datums."""
    rows_JC, marked_JC = (np.zeros((len(chosen_J), num_cells), np.int32) for _ in range(2))
    return DatumSums(chosen_J, rows_JC, marked_JC, np.zeros(rows_JC.shape))


def sum_rows(pieces: Sequence[ChosenRows], num_cells: int) -> DatumSums:
    """Sum rows; needs at least one."""
    columns = zip(*(vars(piece).values() for piece in pieces), strict=True)
    cell_M, chosen_M, marked_M, shift_M = map(np.concatenate, columns)
    chosen_J = np.flatnonzero(np.bincount(chosen_M))
    key_M = np.searchsorted(chosen_J, np.arange(chosen_J[-1] + 1))[chosen_M] * num_cells + cell_M
    shape = len(chosen_J), num_cells
    rows_JC, marked_JC = (
        np.bincount(keys, minlength=math.prod(shape)).astype(np.int32).reshape(shape)
        for keys in (key_M, key_M[marked_M])
    )
    shift_JC = np.bincount(key_M, shift_M, math.prod(shape)).reshape(shape)
    return DatumSums(chosen_J, rows_JC, marked_JC, shift_JC)
