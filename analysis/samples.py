"""Two jobs over outlier shards: how many rows a parameter has, and of which datums they are.

Shapes: P captured parameter, N datum, M row, K distinct (group, datum).
"""

from dataclasses import dataclass

import numpy as np

from analysis.jobs import Rows
from analysis.scan import checked_datums, parameter_columns
from capture.gradients import Layout


@dataclass(frozen=True, eq=False)
class RowCounts:
    """How many outlier rows there are, int64."""

    parameter_P: np.ndarray
    """Of each captured parameter."""
    datum_N: np.ndarray
    """Of each training datum."""


@dataclass(frozen=True)
class CountRows:
    """The job that counts rows by parameter and by datum."""

    layout: Layout
    num_datums: int

    def map_shard(self, shard: Rows) -> RowCounts:
        parameter_P = np.zeros(self.layout.size, np.int64)
        datum_N = np.zeros(self.num_datums, np.int64)
        for batch in shard.batches(("unit", "index", "datum")):
            add_counts(parameter_P, parameter_columns(batch, self.layout, shard.where))
            add_counts(datum_N, checked_datums(batch, self.num_datums, shard.where))
        return RowCounts(parameter_P, datum_N)

    def merge(self, a: RowCounts, b: RowCounts) -> RowCounts:
        return RowCounts(a.parameter_P + b.parameter_P, a.datum_N + b.datum_N)

    def finish(self, partial: RowCounts) -> RowCounts:
        return partial


def add_counts(total: np.ndarray, place_M: np.ndarray) -> None:
    """Count every place into ``total``; touches only the span that occurs (shards are sorted)."""
    if len(place_M):
        first = int(place_M.min())
        found = np.bincount(place_M - first)
        total[first : first + len(found)] += found


@dataclass(frozen=True, eq=False)
class Samples:
    """The datums of each group's outlier rows, with multiplicity."""

    num_datums: int
    key_K: np.ndarray
    """group · num_datums + datum, ascending, each once, int64."""
    rows_K: np.ndarray
    """Outlier rows of that group and datum, int64."""

    @property
    def group_K(self) -> np.ndarray:
        return self.key_K // self.num_datums

    @property
    def datum_K(self) -> np.ndarray:
        return self.key_K % self.num_datums

    def of(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Datums of one group, ascending, and the rows of each."""
        span = np.array([group, group + 1]) * self.num_datums
        first, end = np.searchsorted(self.key_K, span)
        return self.key_K[first:end] - span[0], self.rows_K[first:end]

    def regrouped(self, group_G: np.ndarray) -> "Samples":
        """Samples of coarser groups; ``group_G`` names each old group's new one, or -1 for none."""
        new_K = group_G[self.group_K]
        kept_K = new_K >= 0
        key_K = new_K[kept_K] * self.num_datums + self.datum_K[kept_K]
        return Samples(self.num_datums, *sum_by_key(key_K, self.rows_K[kept_K]))


@dataclass(frozen=True, eq=False)
class SampleDatums:
    """The job that collects the datums of groups of parameters."""

    layout: Layout
    num_datums: int
    group_P: np.ndarray
    """The group of each captured parameter, or -1 for none."""

    def map_shard(self, shard: Rows) -> Samples:
        pieces = [np.zeros(0, np.int64)]
        for batch in shard.batches(("unit", "index", "datum")):
            group_M = self.group_P[parameter_columns(batch, self.layout, shard.where)]
            datum_M = checked_datums(batch, self.num_datums, shard.where)
            kept_M = group_M >= 0
            pieces.append(group_M[kept_M] * np.int64(self.num_datums) + datum_M[kept_M])
        return Samples(self.num_datums, *np.unique(np.concatenate(pieces), return_counts=True))

    def merge(self, a: Samples, b: Samples) -> Samples:
        keys, rows = np.concatenate([a.key_K, b.key_K]), np.concatenate([a.rows_K, b.rows_K])
        return Samples(self.num_datums, *sum_by_key(keys, rows))

    def finish(self, partial: Samples) -> Samples:
        return partial


def sum_by_key(key_M: np.ndarray, rows_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, and the sum of each one's rows."""
    order_M = np.argsort(key_M, kind="stable")  # linear where runs are sorted already
    key_M, rows_M = key_M[order_M], rows_M[order_M]
    if not len(key_M):
        return key_M, rows_M
    first_K = np.concatenate([[0], np.flatnonzero(key_M[1:] != key_M[:-1]) + 1])
    return key_M[first_K], np.add.reduceat(rows_M, first_K)
