"""Outlier rows as evidence: which rows count, for which token, and with what weight.

A row of the outlier record says that this datum moved this parameter, and which position of the
window contributed most. The row is evidence for

- *target*: the token to be predicted at that position,
- *input*: the token at that position, or
- *window*: every token of the datum, as in the study, which recorded no positions.

A row weighs 1 (*count*), |shift| (*shift*), or |shift · weight| with the parameter's value at the
start of the row's segment (*effect*). With *effect*, shifts of large weights count more.

Shapes: P captured parameter, M row, N datum, T position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from analysis.attribution.start_weights import StartWeights
from analysis.jobs.job import Rows
from analysis.run.scan import REMEDY, checked_datums, parameter_columns
from capture.errors import ShardError
from capture.gradients.layout import Layout

RowEvidence = Literal["target", "input", "window"]
ROW_EVIDENCE: tuple[RowEvidence, ...] = get_args(RowEvidence)
Weight = Literal["count", "shift", "effect"]
WEIGHTS: tuple[Weight, ...] = get_args(Weight)
ROWS_AT_ONCE = 2**21
"""Rows processed together; each takes about 100 bytes of memory in a thread."""


@dataclass(frozen=True, eq=False)
class OutlierFilter:
    """Keeps rows whose |shift|, divided by a scale of their parameter, reaches a threshold."""

    scale_P: np.ndarray
    """Divisor of each parameter's |shift|, float32."""
    threshold: float
    """Smallest quotient that is kept."""

    def keeps(self, rows: "RowBatch") -> np.ndarray:
        """Return whether each row is kept, bool [M]."""
        return scaled_shifts(self.scale_P, rows.parameter_M, rows.shift_M) >= self.threshold


def scaled_shifts(scale_P: np.ndarray, parameter_M: np.ndarray, shift_M: np.ndarray) -> np.ndarray:
    """Return |shift| divided by its parameter's scale, float32 [M]; 0 where the scale is 0."""
    scale_M = scale_P[parameter_M]
    return np.divide(np.abs(shift_M), scale_M, out=np.zeros_like(shift_M), where=scale_M > 0)


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Some rows of a shard. Of step, position and shift, columns not asked for are empty."""

    parameter_M: np.ndarray
    """Position of the row's parameter among all captured ones (``Layout``)."""
    datum_M: np.ndarray
    step_M: np.ndarray
    position_M: np.ndarray
    shift_M: np.ndarray

    def where(self, kept_M: np.ndarray) -> "RowBatch":
        """Return the rows for which ``kept_M`` is true."""
        filled = {name: x if len(x) < len(kept_M) else x[kept_M] for name, x in vars(self).items()}
        return RowBatch(**filled)


NO_ROWS = RowBatch(*(np.zeros(0, kind) for kind in (np.int64, np.int32, np.int32, np.int16, "f4")))


@dataclass(frozen=True, eq=False)
class RowReader:
    """Reads the outlier rows that count, and checks that their values are possible."""

    layout: Layout
    num_datums: int
    window: int
    """Number of positions of a datum."""
    steps: range | None = None
    """Only rows of these steps count (None: all)."""
    outlier_filter: OutlierFilter | None = None
    """Only rows that it keeps count (None: all)."""
    units: tuple[str, ...] | None = None
    """Row groups without rows of these units are skipped (None: all are read)."""
    length_N: np.ndarray | None = None
    """Number of positions of each datum, if they differ. Rows at padding do not count."""

    def batches(self, shard: Rows, extra: Sequence[str] = ()) -> Iterator[RowBatch]:
        """Yield the rows that count, about ``ROWS_AT_ONCE`` at a time.

        ``extra`` names the columns wanted besides, of step, position and shift. Raises
        ``ShardError`` for rows with impossible values.
        """
        names = set(extra)
        if self.steps:
            names.add("step")
        if self.outlier_filter:
            names.add("shift")
        if self.length_N is not None:
            names.add("position")
        columns = ["unit", "index", "datum", *sorted(names)]
        wanted = {} if self.units is None else {"unit": sorted(self.units)}
        held = [NO_ROWS]
        for batch in shard.batches(columns, wanted):
            held.append(self.decode(batch, shard.where))
            # The next batch is expected to be as large as this one.
            if sum(len(rows.datum_M) for rows in held) + batch.num_rows > ROWS_AT_ONCE:
                yield self.select(concatenate_rows(held))
                held = [NO_ROWS]
        yield self.select(concatenate_rows(held))

    def decode(self, batch: pa.RecordBatch, where: str) -> RowBatch:
        """Return all rows of an Arrow batch; raise ``ShardError`` for impossible values."""
        given = {
            f"{name}_M": batch[name].to_numpy() if name in batch.schema.names else np.zeros(0)
            for name in ("step", "position", "shift")
        }
        position_M = given["position_M"]
        if len(position_M) and not 0 <= position_M.min() <= position_M.max() < self.window:
            found = f"{position_M.min()} to {position_M.max()}"
            problem = f"has positions {found}, a datum has {self.window}"
            raise ShardError(where, problem, REMEDY)
        parameter_M = parameter_columns(batch, self.layout, where)
        return RowBatch(parameter_M, checked_datums(batch, self.num_datums, where), **given)

    def select(self, rows: RowBatch) -> RowBatch:
        """Return the rows that count."""
        if self.steps is not None:
            step_M = rows.step_M
            rows = rows.where((step_M >= self.steps.start) & (step_M < self.steps.stop))
        if self.outlier_filter is not None:
            rows = rows.where(self.outlier_filter.keeps(rows))
        if self.length_N is not None:
            rows = rows.where(rows.position_M < self.length_N[rows.datum_M])
        return rows


def concatenate_rows(batches: Sequence[RowBatch]) -> RowBatch:
    columns = zip(*(vars(rows).values() for rows in batches), strict=True)
    return RowBatch(*map(np.concatenate, columns))


@dataclass(frozen=True, eq=False)
class RowWeighting:
    """The weight of each row."""

    kind: Weight
    weights: StartWeights | None = None
    """Required for *effect*."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the weight is computed from."""
        return {"count": (), "shift": ("shift",), "effect": ("shift", "step")}[self.kind]

    def of(self, rows: RowBatch) -> np.ndarray | None:
        """Return the weight of each row, float64 [M]; None if every row weighs 1."""
        if self.kind == "count":
            return None
        size_M = np.abs(rows.shift_M).astype(np.float64)
        if self.kind == "shift":
            return size_M
        assert self.weights is not None
        return size_M * np.abs(self.weights.of_rows(rows.step_M, rows.parameter_M))


def tokens_of(rows: RowBatch, token_NT: np.ndarray) -> np.ndarray:
    """Return the token at each row's datum and position, [M]."""
    flat_M = rows.datum_M.astype(np.int64) * token_NT.shape[1] + rows.position_M
    return token_NT.ravel()[flat_M]
