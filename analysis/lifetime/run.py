"""A run whose recorded shifts are lifetime shifts, for the analyses that read recorded shifts."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.jobs.tables import place_of, read_table, require_tables
from analysis.lifetime.record import Report, record_lifetimes
from analysis.lifetime.tables import (
    CONTRIBUTIONS,
    CONTRIBUTIONS_KEY,
    JOB,
    NEURONS,
    UNITS,
    UPDATE_NORMS,
    norms_key,
)
from analysis.run.committed import overlap
from analysis.run.run import Run
from analysis.run.scan import REMEDY, Shard
from analysis.run.tallies import UnitTally, tally_windows
from analysis.run.tallies import read_tally as read_recorded_tally
from capture.errors import RunError, ShardError
from capture.format.markers import File, Marker
from capture.shifts.tallies import By

NO_RECORD = Marker(0, 0, ())


@dataclass(frozen=True, eq=False, repr=False)
class LifetimeRun(Run):
    """A run; its outliers are the largest lifetime shifts."""

    record: Marker = NO_RECORD
    """Marker of the record of lifetime shifts."""

    def shards(self, kind: str, steps: range | None = None) -> list[Shard]:
        """Like ``Run.shards``; tables of outliers are those of lifetime shifts."""
        if kind != "outliers":
            return super().shards(kind, steps)
        return [
            Shard(place_of(self, JOB), file, segment.first_step, segment.end_step)
            for file, segment in zip(self.outlier_files, self.segments, strict=True)
            if steps is None or overlap(steps, segment)
        ]

    def require_shards(self, kind: str) -> list[Shard]:
        """Like ``Run.require_shards``."""
        found = self.shards(kind) if kind == "outliers" else []
        return found or super().require_shards(kind)

    @property
    def outlier_files(self) -> list[File]:
        """Tables of outliers, one a segment, in order."""
        return sorted(self.record.files_of("outliers"), key=lambda file: file.key)

    def update_norms(self, unit: str, by: By, windows: Sequence[int], width: int) -> np.ndarray:
        """Return the update norms of a unit's neurons, summed over windows, float32 [V, I]."""
        total_VI = np.zeros((self.num_tokens, width), np.float32)
        for window in windows:
            total_VI += self.lists(norms_key(window), UPDATE_NORMS, unit, by, width)
        return total_VI

    def contributions(self, unit: str, by: By) -> np.ndarray:
        """Return what tokens contributed to the change of a unit's neurons, float32 [V, I]."""
        width = self.layout.fan_in(unit)
        return self.lists(CONTRIBUTIONS_KEY, CONTRIBUTIONS, unit, by, width)

    def neuron_changes(self) -> pd.DataFrame:
        """Return ``NEURONS``: the terms of the law along the change of each neuron."""
        return read_table(self, JOB, "neurons", NEURONS)

    def lists(self, key: str, schema: pa.Schema, unit: str, by: By, width: int) -> np.ndarray:
        """Return the last column of a table, a list of an entry per neuron, float32 [V, I]."""
        where = place_of(self, JOB)
        file = next((file for file in self.record.files if file.key == key), None)
        if file is None:
            raise ShardError(f"{where.uri}/{key}", "is missing", REMEDY)
        shard = Shard(where, file, 0, self.steps_done)
        rows = shard.rows_of(schema, {"unit": [unit], "by": [by]})
        value_RI = rows[schema.names[-1]].combine_chunks().flatten().to_numpy()
        token_R = rows["token_id"].to_numpy()
        known = (token_R >= 0) & (token_R < self.num_tokens)
        if value_RI.size != len(token_R) * width or not known.all():
            raise ShardError(shard.where, f"has no {width} neurons of {unit}", REMEDY)
        found_VI = np.zeros((self.num_tokens, width), np.float32)
        found_VI[token_R] = value_RI.reshape(-1, width)
        return found_VI


def lifetime_run(run: Run, report: Report = lambda done, wanted: None) -> LifetimeRun:
    """Return the run with lifetime shifts as its recorded shifts.

    They are computed and stored in ``run.tables`` unless they are there for the run as it is;
    ``report`` is then called after every step. Raises what ``record_lifetimes`` raises.
    """
    if isinstance(run, LifetimeRun):
        return run
    record = stored_record(run)
    if record is None:
        record_lifetimes(run, report)
        record = require_tables(run, JOB)
    own = {each.name: getattr(run, each.name) for each in fields(run)}
    found = LifetimeRun(**own, record=record)
    # What was read before need not be read again; gradients are the same.
    vars(found).update({key: value for key, value in vars(run).items() if key not in vars(found)})
    return found


def require_positions(run: LifetimeRun) -> None:
    """Raise ``RunError`` if some outliers have no position: those of a custom training loop.

    Their gradients come from stored factors, which hold sums over positions for biases and norms.
    """
    if run.from_custom_loop:
        problem = "was recorded in a custom training loop, whose biases and norms have lifetime "
        problem += "shifts without positions"
        remedy = "Choose the evidence window, or neurons, rows, heads or weights"
        raise RunError(run.uri, problem, remedy)


def stored_record(run: Run) -> Marker | None:
    """Return the marker of a record that fits the run as it is."""
    try:
        found = require_tables(run, JOB)
    except (RunError, ShardError):
        return None
    whole = len(found.files_of("outliers")) == len(run.segments)
    return found if whole and CONTRIBUTIONS_KEY in {file.key for file in found.files} else None


def law_of_units(run: Run) -> pd.DataFrame:
    """Return ``UNITS`` of the stored record; raise ``RunError`` without one."""
    return read_table(run, JOB, "units", UNITS)


def read_tally(
    run: Run, unit: str, by: By = "target", windows: Sequence[int] | None = None
) -> UnitTally:
    """Like ``analysis.run.tallies.read_tally``; of a ``LifetimeRun``, norms of lifetime shifts."""
    found = read_recorded_tally(run, unit, by, windows)
    if not isinstance(run, LifetimeRun):
        return found
    wanted = tally_windows(run)["window"].tolist() if windows is None else windows
    width = found.update_norm_VI.shape[1]
    return replace(found, update_norm_VI=run.update_norms(unit, by, wanted, width))
