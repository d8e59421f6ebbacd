"""How much of each step's recorded shifts belongs to each datum and each neuron.

Shapes: M row of a shard, E entry (a step and a datum, or a step and a neuron), S step, G neuron.
"""

from dataclasses import dataclass

import numpy as np

from analysis.jobs.job import Rows
from analysis.levels import Groups
from analysis.run.scan import checked_datums, parameter_columns
from capture.gradients.layout import Layout

COLUMNS = ["step", "datum", "unit", "index", "shift"]


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of |shift| by step and number (of a datum or a neuron), sorted by both."""

    step_E: np.ndarray
    number_E: np.ndarray
    sum_E: np.ndarray

    @classmethod
    def of(cls, step_M: np.ndarray, number_M: np.ndarray, size_M: np.ndarray) -> "Sums":
        """Return the sums of rows in any order."""
        key_M = step_M.astype(np.int64) << 32 | number_M.astype(np.int64)
        key_E, entry_M = np.unique(key_M, return_inverse=True)
        total_E = np.bincount(entry_M, size_M.astype(np.float64), minlength=len(key_E))
        return cls(key_E >> 32, key_E & 0xFFFFFFFF, total_E)

    def __add__(self, other: "Sums") -> "Sums":
        pairs = ("step_E", "number_E", "sum_E")
        return Sums.of(*(np.concatenate([getattr(self, k), getattr(other, k)]) for k in pairs))


@dataclass(frozen=True, eq=False)
class Activity:
    """Shares of each step's recorded shifts."""

    datums: Sums
    """``sum_E`` is the datum's share of its step; only steps in which it was trained on."""
    neurons: Sums
    """The neuron's share; steps in which it has no outlier are missing and count 0."""
    steps: int
    """Number of steps of the run."""


@dataclass(frozen=True, eq=False)
class ActivityJob:
    """Adds up the outlier record by step and datum, and by step and neuron."""

    layout: Layout
    num_datums: int
    groups: Groups | None
    """Neurons; None if the run has none."""
    steps: int

    def map_shard(self, shard: Rows) -> tuple[Sums, Sums]:
        empty = np.zeros(0, np.int64)
        found = (Sums.of(empty, empty, empty), Sums.of(empty, empty, empty))
        for batch in shard.batches(COLUMNS):
            step_M, size_M = batch["step"].to_numpy(), np.abs(batch["shift"].to_numpy())
            datum_M = checked_datums(batch, self.num_datums, shard.where)
            place_M = parameter_columns(batch, self.layout, shard.where)
            group_M = (
                np.full(len(place_M), -1) if self.groups is None else self.groups.group_P[place_M]
            )
            kept = group_M >= 0
            rows = (
                Sums.of(step_M, datum_M, size_M),
                Sums.of(step_M[kept], group_M[kept], size_M[kept]),
            )
            found = self.merge(found, rows)
        return found

    def merge(self, a: tuple[Sums, Sums], b: tuple[Sums, Sums]) -> tuple[Sums, Sums]:
        return a[0] + b[0], a[1] + b[1]

    def finish(self, partial: tuple[Sums, Sums]) -> Activity:
        datums, neurons = partial
        total_S = np.bincount(datums.step_E, datums.sum_E, minlength=self.steps)
        total_S = np.where(total_S > 0, total_S, 1.0)
        shares = [
            Sums(each.step_E, each.number_E, each.sum_E / total_S[each.step_E])
            for each in (datums, neurons)
        ]
        return Activity(shares[0], shares[1], self.steps)
