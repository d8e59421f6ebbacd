"""Outliers by unit and by time: a job over outlier shards that counts rows and sums |shift|.

Shapes: M row, B bin of steps, U unit.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.jobs.job import Rows, Runner
from analysis.jobs.question import Question
from analysis.jobs.tables import read_table, require_tables, write_tables
from analysis.run.run import Run
from capture.errors import RunError, ShardError

JOB = "report"
TIMELINE = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("first_step", pa.int32()),  # first step of the bin
        pa.field("end_step", pa.int32()),  # step after the bin
        pa.field("rows", pa.int64()),  # outliers of the unit in these steps
        pa.field("size", pa.float64()),  # Σ|shift| of these outliers, in units of the weight
    ]
)
"""One row per bin of steps and unit, including those without outliers."""


@dataclass(frozen=True)
class TimelineConfig:
    """Settings of the table, which are part of the question that it answers."""

    max_bins: int = 60
    """Bins of steps over all of training, at most."""


@dataclass(frozen=True, eq=False)
class OutlierTotals:
    """Partial result of ``CountOutliers``."""

    rows_BU: np.ndarray
    """Number of outliers, int64."""
    size_BU: np.ndarray
    """Σ|shift|, float64."""


@dataclass(frozen=True)
class CountOutliers:
    """A job that counts outliers and sums |shift| by bin of steps and by unit."""

    units: tuple[str, ...]
    num_steps: int
    steps_per_bin: int

    @property
    def shape(self) -> tuple[int, int]:
        """Number of bins, number of units."""
        return -(-self.num_steps // self.steps_per_bin), len(self.units)

    def map_shard(self, shard: Rows) -> OutlierTotals:
        """Sum one shard. Raises ``ShardError`` for rows of a unit or step that the run lacks."""
        rows_BU, size_BU = np.zeros(self.shape, np.int64), np.zeros(self.shape)
        for batch in shard.batches(["step", "unit", "shift"]):
            key_M = self.keys(batch, shard.where)
            size_M = np.abs(batch["shift"].to_numpy())
            cells = rows_BU.size
            rows_BU += np.bincount(key_M, minlength=cells).reshape(self.shape)
            size_BU += np.bincount(key_M, size_M, minlength=cells).reshape(self.shape)
        return OutlierTotals(rows_BU, size_BU)

    def keys(self, batch: pa.RecordBatch, where: str) -> np.ndarray:
        """Flat index of each row's cell in [B, U], int64 [M]."""
        unit, step_M = batch["unit"], batch["step"].to_numpy()
        names = unit.dictionary.to_pylist()
        unknown = sorted(set(names) - set(self.units))
        beyond = len(step_M) and not 0 <= step_M.min() <= step_M.max() < self.num_steps
        if unknown or beyond:
            problem = f"has rows of {unknown[0]}" if unknown else "has rows of other steps"
            raise ShardError(where, f"{problem}, which the run lacks", "Run: ontogeny verify")
        # A batch has a dictionary of its own, whose codes are not the run's unit numbers.
        unit_of_code = np.array([self.units.index(name) for name in names], np.int64)
        return (
            step_M // self.steps_per_bin * np.int64(len(self.units))
            + unit_of_code[unit.indices.to_numpy()]
        )

    def merge(self, a: OutlierTotals, b: OutlierTotals) -> OutlierTotals:
        return OutlierTotals(a.rows_BU + b.rows_BU, a.size_BU + b.size_BU)

    def finish(self, partial: OutlierTotals) -> pd.DataFrame:
        """Return a table with the columns of ``TIMELINE``, by time, then unit."""
        num_bins, num_units = self.shape
        first_B = np.arange(num_bins) * self.steps_per_bin
        return pd.DataFrame(
            {
                "unit": np.tile(np.array(self.units, object), num_bins),
                "first_step": np.repeat(first_B, num_units),
                "end_step": np.repeat(
                    np.minimum(first_B + self.steps_per_bin, self.num_steps), num_units
                ),
                "rows": partial.rows_BU.ravel(),
                "size": partial.size_BU.ravel(),
            }
        )


def read_timeline(run: Run, run_job: Runner, *, keep: bool = True) -> pd.DataFrame:
    """Read ``TIMELINE``, or compute it if it is missing and, with ``keep``, write it."""
    try:
        require_tables(run, JOB)
    except RunError:
        shards = run.require_shards("outliers")
        config = TimelineConfig()
        steps_per_bin = -(-run.steps_done // config.max_bins)
        job = CountOutliers(tuple(run.layout.names), run.steps_done, steps_per_bin)
        found = run_job(job, shards)
        if not keep:
            return found
        question = Question.of(JOB, config)
        write_tables(run, JOB, {"timeline": found}, {"timeline": TIMELINE}, question)
    return read_table(run, JOB, "timeline", TIMELINE)
