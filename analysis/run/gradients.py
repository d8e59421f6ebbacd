"""What one datum did to one unit in one step, exactly, from its stored factors.

A question reads the footer of one small table and, of one row group in it, the few columns that the
unit needs. Gradients are of the datum's share of the batch's mean loss, so the batch's add up to
the gradient of its loss (before clipping), and a shift is a gradient times the step's scale.

Shapes: N, M datum in a step; R row of a unit.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

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
from capture.store.store import Store

if TYPE_CHECKING:
    from capture.replay.segments import ReplayableRun, ReplayedStep

StepDatum = tuple[int, int]
"""Step and datum."""
MOST_NAMED = 8
LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Gradients:
    """Answers from the factors of a run; its steps tell which datum was where."""

    store: Store
    layout: Layout
    steps: list[Shard]
    factors: list[Shard]
    replayed: dict[int, "ReplayedStep"] = field(default_factory=dict)
    """The last step that was taken again, because not all that was asked of it is stored."""
    batches: dict[int, list[int]] = field(default_factory=dict)
    """Datums by slot, of steps that were asked for."""

    def gradient(self, step: int, datum: int, unit: str) -> np.ndarray:
        """Of the unit's shape, float32."""
        found = self.read(unit, [(step, datum)])[0]
        return dense(found.uses, found.shape).numpy()

    def error(self, step: int, datum: int, unit: str) -> np.ndarray:
        """How far each entry may be from what capture saw, float32: 0 unless kept as float16."""
        return error_bound(self.read(unit, [(step, datum)])[0]).numpy()

    def shift(self, step: int, datum: int, unit: str) -> np.ndarray:
        """Of the unit's shape, float32; to the bit what outliers hold.

        An optimizer that multiplies each entry by something besides, as Adam does, is asked for it
        by taking the step again. Raises ``RunError`` where that cannot be.
        """
        found = self.read(unit, [(step, datum)])[0]
        shift = dense(found.uses, found.shape, found.scale).numpy()
        if found.preconditioned:
            preconditioner = self.again(step, "no preconditioner").preconditioner
            assert preconditioner is not None
            shift *= preconditioner[unit]
        return shift

    def column(self, step: int, datum: int, unit: str, n: int) -> np.ndarray:
        """Column n of the gradient, float32 [R]; the dense gradient is never made."""
        found = self.read_matrix(step, datum, unit, f"[:, {n}]", n, axis=1)
        return inner.column(found.uses, n, found.shape)[0].numpy()

    def neuron(self, step: int, datum: int, unit: str, n: int) -> np.ndarray:
        """Of neuron n, an input: a column of the gradient, or a row where it is stored [I, O]."""
        if unit not in self.layout.transposed:
            return self.column(step, datum, unit, n)
        found = self.read_matrix(step, datum, unit, f"[{n}, :]", n, axis=0)
        return inner.row(found.uses, n, found.shape)[0].numpy()

    def read_matrix(
        self, step: int, datum: int, unit: str, part: str, n: int, *, axis: int
    ) -> DatumFactors:
        """A unit's factors; raises ``UnitError`` unless it is a matrix that has the part."""
        found = self.read(unit, [(step, datum)])[0]
        if len(found.shape) != 2 or not 0 <= n < found.shape[axis]:
            shape = " × ".join(map(str, found.shape))
            raise UnitError(f"{unit}{part}", f"does not exist: the unit is {shape}")
        return found

    def inner_products(
        self, units: str | Sequence[str], one: Sequence[StepDatum], other: Sequence[StepDatum]
    ) -> np.ndarray:
        """⟨g_n, g_m⟩ summed over units, float64 [N, M]; neither gradient is ever made."""
        out_NM = torch.zeros(len(one), len(other), dtype=torch.float64)
        for unit in [units] if isinstance(units, str) else units:
            left, right = joined(self.read(unit, one)), joined(self.read(unit, other))
            out_NM += inner.inner_products(left, right)
        return out_NM.numpy()

    @property
    def uri(self) -> str:
        return self.store.uri

    @cached_property
    def past(self) -> "ReplayableRun":
        """What replaying needs of the run; raises ``RunError`` for one of somebody's own loop."""
        from capture.replay.segments import read_replayable_run  # loads the training engine

        try:
            return read_replayable_run(self.store)
        except ConfigError as error:
            problem = "was recorded in a loop that is not ours, whose steps cannot be taken again"
            remedy = "Record factors as it trains, and ask for gradients"
            raise RunError(self.uri, problem, remedy) from error

    def again(self, step: int, lacking: str) -> "ReplayedStep":
        """A step taken again, which is said, for what the run does not hold of it."""
        from capture.replay.segments import replay_step  # loads the training engine

        if step not in self.replayed:
            past = self.past
            LOG.warning("%s: step %d has %s recorded; taking it again", self.uri, step, lacking)
            self.replayed.clear()
            self.replayed[step] = replay_step(past, step)
        return self.replayed[step]

    # --- reading ----------------------------------------------------------------------------------

    def read(self, unit: str, when: Sequence[StepDatum]) -> list[DatumFactors]:
        """The unit's factors of each datum in its step, in the order asked for.

        Raises ``UnitError`` for a unit that was not captured, ``RunError`` for a step that the run
        lacks or a datum that was not in it, ``ShardError`` for a damaged table.
        """
        if unit not in self.layout.shapes:
            raise UnitError(unit, "was not captured", nearest(unit, self.layout.names))
        places = [(step, self.slot(step, datum), datum) for step, datum in when]
        return [self.read_one(unit, *place) for place in places]

    def read_one(self, unit: str, step: int, slot: int, datum: int) -> DatumFactors:
        shape = self.layout.shapes[unit]
        for shard in candidates(self.factors, step, slot):
            found = read_datum(shard, self.layout, unit, (step, slot, datum))
            if found:
                return found
        if any(covers(shard, step) for shard in self.factors):
            raise RunError(self.uri, f"has no intact factors of step {step}, slot {slot}", REMEDY)
        again = self.again(step, "no factors")
        return factors_of_slot(again.layout, again.rows, slot, unit, shape)

    def slot(self, step: int, datum: int) -> int:
        """Where in its batch a datum was; raises ``RunError`` if it was not there."""
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
        """In which steps a datum was."""
        batches = sorted(batches_of(self.steps).items())
        steps = [step for step, datums in batches if datum in datums]
        more = ", …" if len(steps) > MOST_NAMED else ""
        return f"It was in steps {', '.join(map(str, steps[:MOST_NAMED]))}{more}" if steps else ""


def batches_of(steps: Sequence[Shard]) -> dict[int, list[int]]:
    """The datums of every step, by slot."""
    rows = [row for shard in steps for row in shard.table(["step", "datums"]).to_pylist()]
    return {row["step"]: row["datums"] for row in rows}


def covers(shard: Shard, step: int) -> bool:
    return shard.first_step <= step < shard.end_step


def candidates(shards: Sequence[Shard], step: int, slot: int) -> list[Shard]:
    """The tables that can hold a row: of each worker the last that begins at or before it."""
    near = sorted((shard for shard in shards if covers(shard, step)), key=lambda s: s.file.key)
    found = []
    for _, tables in groupby(near, key=lambda s: s.file.key.rsplit("-", 2)[0]):
        begun = [table for table in tables if first_row_of(table.file.key) <= (step, slot)]
        found += sorted(begun, key=lambda s: first_row_of(s.file.key))[-1:]
    return found


def read_datum(
    shard: Shard, layout: Layout, unit: str, place: tuple[int, int, int]
) -> DatumFactors | None:
    """The unit's factors of (step, slot, datum); None where the table has no such row."""
    step, slot, datum = place
    with shard.reading() as file:
        groups = promising_groups(file.metadata, {"step": [step], "slot": [slot]})
        if not groups:
            return None
        try:
            stored = decode((file.metadata.metadata or {}).get(KEY, b""), layout.shapes)
            rows = read_columns(shard, file, groups, stored, unit)
            hit_M = (rows["step"].to_numpy() == step) & (rows["slot"].to_numpy() == slot)
            if not hit_M.any():
                return None
            row = {name: rows[name][int(hit_M.argmax())] for name in rows.column_names}
            if row["datum"].as_py() != datum:
                raise ValueError(f"it has another datum than steps/ at step {step}, slot {slot}")
            return read_row(row, stored, unit, layout.shapes[unit])
        except ValueError as error:
            raise ShardError(shard.where, f"is not readable: {error}", REMEDY) from error


def read_columns(
    shard: Shard, file: parquet.ParquetFile, groups: list[int], stored: FactorLayout, unit: str
) -> pa.Table:
    """Rows with all that a unit needs, in the right types and without gaps."""
    if unit not in stored.uses:
        raise ValueError(f"it has no factors of {unit}")
    columns = ["step", "slot", "datum", "scale", *columns_of(stored, unit)]
    precisions = {name: array.precision for name, array in stored.arrays.items()}
    shard.check_types(file.schema_arrow, columns, factor_schema(precisions))
    rows = shard.sound(file.read_row_groups(groups, columns=columns))
    if any(column.null_count for column in rows.columns):
        raise ValueError("it has rows with gaps")
    return rows


def joined(found: Sequence[DatumFactors]) -> list[Factor]:
    """The factors of several datums as of one batch, in float64."""
    uses = zip(*(datum.uses for datum in found), strict=True)
    return [join_use(list(same)) for same in uses]


def join_use(same: list[Factor]) -> Factor:
    def cat(tensors: list) -> torch.Tensor | None:
        if tensors[0] is None:
            return None
        whole = torch.cat(tensors)
        return whole.double() if whole.is_floating_point() else whole

    delta_NTO = cat([use.delta_NTO for use in same])
    assert delta_NTO is not None
    a_NTI, token_NT = cat([u.a_NTI for u in same]), cat([u.token_NT for u in same])
    return Factor(same[0].kind, delta_NTO, a_NTI, same[0].transposed, token_NT)
