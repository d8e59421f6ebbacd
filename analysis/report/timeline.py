"""Where and when outliers fell: rows and Σ|shift| by unit and time. A job over outlier shards.

Shapes: M row, B bin of steps, U unit.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.jobs.job import Rows, Runner
from analysis.jobs.tables import read_table, require_tables, write_tables
from analysis.run.run import Run
from capture.errors import RunError, ShardError

JOB = "report"
NUM_BINS = 60
TIMELINE = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("first_step", pa.int32()),  # of the bin
        pa.field("end_step", pa.int32()),  # one past its last
        pa.field("rows", pa.int64()),  # outliers of the unit in these steps
        pa.field("size", pa.float64()),  # their Σ|shift|, in units of the weight
    ]
)
"""One row a unit and bin of steps, also where there are no outliers."""


@dataclass(frozen=True, eq=False)
class Totals:
    """Partial result."""

    rows_BU: np.ndarray
    """int64"""
    size_BU: np.ndarray
    """Σ|shift|, float64."""


@dataclass(frozen=True)
class CountOutliers:
    """Counts rows and sums sizes by bin of ``steps_per_bin`` steps and unit."""

    units: tuple[str, ...]
    num_steps: int
    steps_per_bin: int

    @property
    def shape(self) -> tuple[int, int]:
        return -(-self.num_steps // self.steps_per_bin), len(self.units)

    def map_shard(self, shard: Rows) -> Totals:
        """Raises ``ShardError`` for rows of a unit or step that the run lacks."""
        rows_BU, size_BU = np.zeros(self.shape, np.int64), np.zeros(self.shape)
        for batch in shard.batches(["step", "unit", "shift"]):
            key_M = self.keys(batch, shard.where)
            size_M = np.abs(batch["shift"].to_numpy())
            places = rows_BU.size
            rows_BU += np.bincount(key_M, minlength=places).reshape(self.shape)
            size_BU += np.bincount(key_M, size_M, minlength=places).reshape(self.shape)
        return Totals(rows_BU, size_BU)

    def keys(self, batch: pa.RecordBatch, where: str) -> np.ndarray:
        """Each row's place in a flat [B, U], int64 [M]."""
        unit, step_M = batch["unit"], batch["step"].to_numpy()
        names = unit.dictionary.to_pylist()
        unknown = sorted(set(names) - set(self.units))
        beyond = len(step_M) and not 0 <= step_M.min() <= step_M.max() < self.num_steps
        if unknown or beyond:
            problem = f"has rows of {unknown[0]}" if unknown else "has rows of other steps"
            raise ShardError(where, f"{problem}, which the run lacks", "Run: ontogeny verify")
        places = np.array([self.units.index(name) for name in names], np.int64)
        return (
            step_M // self.steps_per_bin * np.int64(len(self.units))
            + places[unit.indices.to_numpy()]
        )

    def merge(self, a: Totals, b: Totals) -> Totals:
        return Totals(a.rows_BU + b.rows_BU, a.size_BU + b.size_BU)

    def finish(self, partial: Totals) -> pd.DataFrame:
        """The columns of ``TIMELINE``, by time, then unit."""
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


def read_timeline(run: Run, run_job: Runner) -> pd.DataFrame:
    """The table as an earlier report left it, or else counted now and left in the run."""
    try:
        require_tables(run, JOB)
    except RunError:
        shards = run.require_shards("outliers")
        steps_per_bin = -(-run.steps_done // NUM_BINS)
        job = CountOutliers(tuple(run.layout.names), run.steps_done, steps_per_bin)
        write_tables(run, JOB, {"timeline": run_job(job, shards)}, {"timeline": TIMELINE})
    return read_table(run, JOB, "timeline", TIMELINE)
