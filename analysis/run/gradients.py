"""Exact per-sample gradients and shifts from stored factors, or from a replayed step.

A query reads the footer of one small table and, in one row group, the few columns of the unit.
Gradients are of the datum's share of the batch's mean loss, before clipping: those of a batch sum
to the gradient of its loss. A shift is a gradient times the step's scale (−lr · clip) and, with
optimizers such as Adam, the preconditioner.

Shapes: N, M datum in a step; R row of a unit.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from analysis.run import custom_loop
from analysis.run.scan import REMEDY, Shard, promising_groups
from analysis.run.shift_tables import nearest
from capture.errors import ConfigError, RunError, ShardError, UnitError
from capture.format.factor_layout import KEY, FactorLayout, decode
from capture.format.factor_parts import first_row_of
from capture.format.factor_reader import (
    DatumFactors,
    columns_of,
    dense,
    error_bound,
    factors_of_slot,
    read_row,
)
from capture.gradients import factored_algebra as inner
from capture.gradients.factors import Factor
from capture.gradients.layout import Layout
from capture.shards.schema import factor_schema
from capture.store import Store

if TYPE_CHECKING:
    from capture.replay.segments import ReplayableRun, ReplayedStep

StepDatum = tuple[int, int]
"""A pair (step, datum)."""
MOST_NAMED = 8
LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Gradients:
    """Queries on the factors of a run."""

    store: Store
    layout: Layout
    steps: list[Shard]
    factors: list[Shard]
    replayed: dict[int, "ReplayedStep"] = field(default_factory=dict)
    """The last replayed step, by number; at most one is held."""
    batches: dict[int, list[int]] = field(default_factory=dict)
    """Datums by slot, of the steps queried so far."""
    layouts: dict[bytes, FactorLayout] = field(default_factory=dict)
    """Layouts of the tables queried so far, by their stored text; most tables have the same."""

    def gradient(self, step: int, datum: int, unit: str) -> np.ndarray:
        """Return a datum's gradient, float32, in the shape of the unit."""
        found = self.read(unit, [(step, datum)])[0]
        return dense(found.uses, found.shape).numpy()

    def error(self, step: int, datum: int, unit: str) -> np.ndarray:
        """Return a bound on the error of each entry from storage, float32; 0 unless float16."""
        return error_bound(self.read(unit, [(step, datum)])[0]).numpy()

    def shift(self, step: int, datum: int, unit: str) -> np.ndarray:
        """Return a datum's shifts, float32, in the shape of the unit; bit-equal to outliers.

        With a preconditioner, as in Adam, the step is replayed to obtain it. Raises ``RunError`` if
        the run cannot be replayed.
        """
        found = self.read(unit, [(step, datum)])[0]
        shift = dense(found.uses, found.shape, found.scale).numpy()
        if found.preconditioned:
            preconditioner = self.replay(step, "no preconditioner").preconditioner
            assert preconditioner is not None
            shift *= preconditioner[unit]
        return shift

    def column(self, step: int, datum: int, unit: str, n: int) -> np.ndarray:
        """Return column n of the gradient, float32 [R], without the dense gradient."""
        found = self.read_matrix(step, datum, unit, f"[:, {n}]", n, axis=1)
        return inner.column(found.uses, n, found.shape)[0].numpy()

    def neuron(self, step: int, datum: int, unit: str, n: int) -> np.ndarray:
        """Return the gradient of neuron n, an input: a column, or a row where stored [I, O]."""
        if unit not in self.layout.transposed:
            return self.column(step, datum, unit, n)
        found = self.read_matrix(step, datum, unit, f"[{n}, :]", n, axis=0)
        return inner.row(found.uses, n, found.shape)[0].numpy()

    def read_matrix(
        self, step: int, datum: int, unit: str, part: str, n: int, *, axis: int
    ) -> DatumFactors:
        """Return a unit's factors; raise ``UnitError`` unless it is a matrix with index n."""
        found = self.read(unit, [(step, datum)])[0]
        if len(found.shape) != 2 or not 0 <= n < found.shape[axis]:
            shape = " × ".join(map(str, found.shape))
            raise UnitError(f"{unit}{part}", f"does not exist: the unit is {shape}")
        return found

    def inner_products(
        self, units: str | Sequence[str], one: Sequence[StepDatum], other: Sequence[StepDatum]
    ) -> np.ndarray:
        """Return ⟨g_n, g_m⟩ summed over units, float64 [N, M], without dense gradients."""
        out_NM = torch.zeros(len(one), len(other), dtype=torch.float64)
        for unit in [units] if isinstance(units, str) else units:
            left, right = batch_factors(self.read(unit, one)), batch_factors(self.read(unit, other))
            out_NM += inner.inner_products(left, right)
        return out_NM.numpy()

    @property
    def uri(self) -> str:
        return self.store.uri

    @cached_property
    def replayable(self) -> "ReplayableRun":
        """What replay needs of the run; raises ``RunError`` for a run of a custom loop."""
        from capture.replay.segments import read_replayable_run  # loads the training engine

        try:
            return read_replayable_run(self.store)
        except ConfigError:
            problem = "was recorded in a custom training loop, whose steps cannot be replayed"
            remedy = custom_loop.instead_of_replay(recorded=bool(self.factors))
            raise RunError(self.uri, problem, remedy) from None  # says the same

    def replay(self, step: int, lacking: str) -> "ReplayedStep":
        """Return a replayed step, for records that the run lacks; logs a warning."""
        from capture.replay.segments import replay_step  # loads the training engine

        if step not in self.replayed:
            replayable = self.replayable
            LOG.warning("%s: step %d has %s recorded; replaying it", self.uri, step, lacking)
            self.replayed.clear()
            self.replayed[step] = replay_step(replayable, step)
        return self.replayed[step]

    # --- reading ----------------------------------------------------------------------------------

    def read(self, unit: str, when: Sequence[StepDatum]) -> list[DatumFactors]:
        """Return the unit's factors of each (step, datum), in order.

        Raises ``UnitError`` for a unit that was not captured, ``RunError`` for a step that the run
        lacks or a datum that was not in it, ``ShardError`` for a damaged table.
        """
        if unit not in self.layout.shapes:
            raise UnitError(unit, "was not captured", nearest(unit, self.layout.names))
        rows = [(step, self.slot(step, datum), datum) for step, datum in when]
        return [self.read_one(unit, *row) for row in rows]

    def read_one(self, unit: str, step: int, slot: int, datum: int) -> DatumFactors:
        shape = self.layout.shapes[unit]
        for shard in candidates(self.factors, step, slot):
            found = read_datum(shard, self.stored_layout, shape, unit, (step, slot, datum))
            if found:
                return found
        if any(covers(shard, step) for shard in self.factors):
            raise RunError(self.uri, f"has no intact factors of step {step}, slot {slot}", REMEDY)
        replayed = self.replay(step, "no factors")
        return factors_of_slot(replayed.layout, replayed.rows, slot, unit, shape)

    def stored_layout(self, text: bytes) -> FactorLayout:
        """Return the layout that a table stores; raise ``ValueError`` unless it fits the run."""
        if text not in self.layouts:
            self.layouts[text] = decode(text, self.layout.shapes)
        return self.layouts[text]

    def slot(self, step: int, datum: int) -> int:
        """Return the datum's slot in its batch; raise ``RunError`` if it was not in the step."""
        if step not in self.batches:
            self.batches |= batches_of([shard for shard in self.steps if covers(shard, step)])
        if step not in self.batches:
            last = max((shard.end_step for shard in self.steps), default=0) - 1
            raise RunError(self.uri, f"has no step {step}: its steps are 0 to {last}")
        if datum not in self.batches[step]:
            raise RunError(
                self.uri, f"had no datum {datum} in step {step}", self.whereabouts(datum)
            )
        return self.batches[step].index(datum)

    def whereabouts(self, datum: int) -> str:
        """Return a hint that names the steps of a datum."""
        batches = sorted(batches_of(self.steps).items())
        steps = [step for step, datums in batches if datum in datums]
        more = ", …" if len(steps) > MOST_NAMED else ""
        return f"It was in steps {', '.join(map(str, steps[:MOST_NAMED]))}{more}" if steps else ""


def batches_of(steps: Sequence[Shard]) -> dict[int, list[int]]:
    """Return the datums of every step, by slot."""
    rows = [row for shard in steps for row in shard.table(["step", "datums"]).to_pylist()]
    return {row["step"]: row["datums"] for row in rows}


def covers(shard: Shard, step: int) -> bool:
    return shard.first_step <= step < shard.end_step


def candidates(shards: Sequence[Shard], step: int, slot: int) -> list[Shard]:
    """Return tables that can hold a row: of each worker, the last that begins at or before it."""
    near = sorted((shard for shard in shards if covers(shard, step)), key=lambda s: s.file.key)
    found = []
    for _, tables in groupby(near, key=lambda s: s.file.key.rsplit("-", 2)[0]):
        begun = [table for table in tables if first_row_of(table.file.key) <= (step, slot)]
        found += sorted(begun, key=lambda s: first_row_of(s.file.key))[-1:]
    return found


def read_datum(
    shard: Shard,
    layout_of: Callable[[bytes], FactorLayout],
    shape: tuple[int, ...],
    unit: str,
    place: tuple[int, int, int],
) -> DatumFactors | None:
    """Return the unit's factors of (step, slot, datum); None if the table has no such row.

    ``layout_of`` decodes the table's stored layout; ``shape`` is that of the unit.
    """
    step, slot, datum = place
    with shard.reading() as file:
        groups = promising_groups(file.metadata, {"step": [step], "slot": [slot]})
        if not groups:
            return None
        try:
            stored = layout_of((file.metadata.metadata or {}).get(KEY, b""))
            rows = read_columns(shard, file, groups, stored, unit)
            hit_M = (rows["step"].to_numpy() == step) & (rows["slot"].to_numpy() == slot)
            if not hit_M.any():
                return None
            row = {name: rows[name][int(hit_M.argmax())] for name in rows.column_names}
            if row["datum"].as_py() != datum:
                raise ValueError(f"it has another datum than steps/ at step {step}, slot {slot}")
            return read_row(row, stored, unit, shape)
        except ValueError as error:
            raise ShardError(shard.where, f"is not readable: {error}", REMEDY) from error


def read_columns(
    shard: Shard, file: parquet.ParquetFile, groups: list[int], stored: FactorLayout, unit: str
) -> pa.Table:
    """Return the columns that a unit needs; raise ``ValueError`` for missing values."""
    if unit not in stored.uses:
        raise ValueError(f"it has no factors of {unit}")
    columns = ["step", "slot", "datum", "scale", *columns_of(stored, unit)]
    precisions = {name: array.precision for name, array in stored.arrays.items()}
    shard.check_types(file.schema_arrow, columns, factor_schema(precisions, stored.packing))
    rows = shard.validated(file.read_row_groups(groups, columns=columns))
    if any(column.null_count for column in rows.columns):
        raise ValueError("it has rows with gaps")
    return rows


def batch_factors(found: Sequence[DatumFactors]) -> list[Factor]:
    """Return the factors of several datums as those of one batch, in float64."""
    uses = zip(*(datum.uses for datum in found), strict=True)
    return [concatenate(list(same)) for same in uses]


def concatenate(same: list[Factor]) -> Factor:
    def cat(tensors: list) -> torch.Tensor | None:
        if tensors[0] is None:
            return None
        whole = torch.cat(tensors)
        return whole.double() if whole.is_floating_point() else whole

    delta_NTO = cat([use.delta_NTO for use in same])
    assert delta_NTO is not None
    a_NTI, token_NT = cat([u.a_NTI for u in same]), cat([u.token_NT for u in same])
    return Factor(same[0].kind, delta_NTO, a_NTI, same[0].transposed, token_NT)
