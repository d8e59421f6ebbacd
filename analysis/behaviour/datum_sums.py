"""A job over outlier shards: what some datums did to each part of the model.

Parts (cells) are the finest division that the levels asked for have in common, so one pass over the
rows serves units, heads and neurons together.

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
"""Rows added up at once; they take about 40 bytes each meanwhile."""
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
class ChosenRows:
    """Some outlier rows of chosen datums."""

    cell_M: np.ndarray
    chosen_M: np.ndarray
    """Place of the datum among the chosen."""
    marked_M: np.ndarray
    """Whether the row's position is marked."""
    shift_M: np.ndarray
    """|shift|."""


@dataclass(frozen=True, eq=False)
class DatumSums:
    """What some of the chosen datums did to every cell."""

    chosen_J: np.ndarray
    """Places among the chosen datums, ascending, each once."""
    rows_JC: np.ndarray
    """Outlier rows, int32."""
    marked_JC: np.ndarray
    """Those of them at marked positions, int32."""
    shift_JC: np.ndarray
    """Σ |shift|, float64."""


@dataclass(frozen=True, eq=False)
class SumByDatum:
    """The job that adds up rows and |shift| by chosen datum and cell.

    The answer takes 16 bytes a chosen datum and cell (12,000 datums and the study's model with
    1,260 cells: 240 MB, three times that while the last two parts are merged). A shard's part only
    holds the datums that occur in it.
    """

    layout: Layout
    cells: Cells
    chosen_N: np.ndarray
    """The place of each datum among the chosen, -1 for none."""
    num_chosen: int
    marked_KT: np.ndarray
    """Whether a position of a chosen datum is marked."""

    def map_shard(self, shard: Rows) -> DatumSums:
        # Batches are as small as row groups, the arrays of sums are not: many rows go in at once.
        pieces, waiting, num_waiting = [nothing(np.arange(0), self.cells.num_cells)], [], 0
        for batch in shard.batches(COLUMNS):
            waiting.append(self.chosen_rows(batch, shard.where))
            num_waiting += len(waiting[-1].cell_M)
            if num_waiting >= ROWS_AT_ONCE:
                pieces.append(sum_rows(waiting, self.cells.num_cells))
                waiting, num_waiting = [], 0
        if num_waiting:
            pieces.append(sum_rows(waiting, self.cells.num_cells))
        return merge_all(pieces, self.merge)

    def chosen_rows(self, batch: pa.RecordBatch, where: str) -> ChosenRows:
        """The rows of chosen datums; raises ``ShardError`` for one that cannot be."""
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
        if len(position_M) and not 0 <= position_M.min() <= position_M.max() < window:
            problem = (
                f"has positions {position_M.min()} to {position_M.max()} in windows of {window}"
            )
            raise ShardError(where, problem, REMEDY)


def nothing(chosen_J: np.ndarray, num_cells: int) -> DatumSums:
    """No rows of these chosen datums."""
    rows_JC, marked_JC = (np.zeros((len(chosen_J), num_cells), np.int32) for _ in range(2))
    return DatumSums(chosen_J, rows_JC, marked_JC, np.zeros(rows_JC.shape))


def sum_rows(pieces: Sequence[ChosenRows], num_cells: int) -> DatumSums:
    """Rows (at least one), added up."""
    columns = zip(*(vars(piece).values() for piece in pieces), strict=True)
    cell_M, chosen_M, marked_M, shift_M = map(np.concatenate, columns)
    chosen_J = np.flatnonzero(np.bincount(chosen_M))
    key_M = np.searchsorted(chosen_J, np.arange(chosen_J[-1] + 1))[chosen_M] * num_cells + cell_M
    shape = len(chosen_J), num_cells
    rows_JC, marked_JC = (
        np.bincount(some, minlength=math.prod(shape)).astype(np.int32).reshape(shape)
        for some in (key_M, key_M[marked_M])
    )
    shift_JC = np.bincount(key_M, shift_M, math.prod(shape)).reshape(shape)
    return DatumSums(chosen_J, rows_JC, marked_JC, shift_JC)
