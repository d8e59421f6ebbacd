"""Outlier rows as evidence: which rows count, of which token they speak, and with what weight.

A recorded shift says: this datum moved this weight, and this position of its window contributed
most. What taught the weight is then

- *target*: the token to be predicted at that position,
- *input*: the token that stands there,
- *window*: every token of the datum, position unused. This is all that the study could say.

A row counts once (*count*), by |shift| (*shift*), or by |shift · weight| with the weight as it was
at the start of the row's segment (*effect*): of equal shifts, the one that changes a large weight
counts more.

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
"""Rows worked on together; a thread holds some 100 bytes for each."""


@dataclass(frozen=True, eq=False)
class Outlying:
    """Which recorded rows count as outliers: those whose shift is large for its like."""

    scale_P: np.ndarray
    """What |shift| of each parameter is divided by, float32."""
    least: float
    """A row counts from this quotient on."""

    def sizes(self, place_M: np.ndarray, shift_M: np.ndarray) -> np.ndarray:
        return sizes(self.scale_P, place_M, shift_M)


def sizes(scale_P: np.ndarray, place_M: np.ndarray, shift_M: np.ndarray) -> np.ndarray:
    """|shift| in units of its parameter's scale, float32 [M]; 0 where the scale is 0."""
    scale_M = scale_P[place_M]
    return np.divide(np.abs(shift_M), scale_M, out=np.zeros_like(shift_M), where=scale_M > 0)


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of a shard; of the last three, those that were asked for are filled."""

    place_M: np.ndarray
    """The row's parameter, as a place among all captured ones."""
    datum_M: np.ndarray
    step_M: np.ndarray
    position_M: np.ndarray
    shift_M: np.ndarray

    def where(self, kept_M: np.ndarray) -> "Piece":
        """The rows for which ``kept_M`` is true."""
        filled = {name: x if len(x) < len(kept_M) else x[kept_M] for name, x in vars(self).items()}
        return Piece(**filled)


NOTHING = Piece(*(np.zeros(0, kind) for kind in (np.int64, np.int32, np.int32, np.int16, "f4")))


@dataclass(frozen=True, eq=False)
class Reading:
    """Reads outlier rows that count, and knows what they may hold."""

    layout: Layout
    num_datums: int
    window: int
    """Positions of a datum."""
    steps: range | None = None
    """Only rows of these steps (None: all)."""
    outlying: Outlying | None = None
    """Only rows that it lets through (None: all)."""
    units: tuple[str, ...] | None = None
    """Row groups without rows of these are passed over (None: all are read)."""

    def pieces(self, shard: Rows, extra: Sequence[str] = ()) -> Iterator[Piece]:
        """The rows that count, at most ``ROWS_AT_ONCE`` together, with step, position, shift as
        far as they are named. Raises ``ShardError`` for rows that cannot be."""
        names = {*extra, *(["step"] if self.steps else []), *(["shift"] if self.outlying else [])}
        columns = ["unit", "index", "datum", *sorted(names)]
        wanted = {} if self.units is None else {"unit": sorted(self.units)}
        held = [NOTHING]
        for batch in shard.batches(columns, wanted):
            held.append(self.piece(batch, shard.where))
            if sum(len(piece.datum_M) for piece in held) + batch.num_rows > ROWS_AT_ONCE:
                yield self.counting(together(held))
                held = [NOTHING]
        yield self.counting(together(held))

    def piece(self, batch: pa.RecordBatch, where: str) -> Piece:
        """The rows of a batch, all of them."""
        given = {
            f"{name}_M": batch[name].to_numpy() if name in batch.schema.names else np.zeros(0)
            for name in ("step", "position", "shift")
        }
        position_M = given["position_M"]
        if len(position_M) and not 0 <= position_M.min() <= position_M.max() < self.window:
            found = f"{position_M.min()} to {position_M.max()}"
            problem = f"has positions {found}, a datum has {self.window}"
            raise ShardError(where, problem, REMEDY)
        place_M = parameter_columns(batch, self.layout, where)
        return Piece(place_M, checked_datums(batch, self.num_datums, where), **given)

    def counting(self, piece: Piece) -> Piece:
        """Only the rows that count."""
        if self.steps is not None:
            step_M = piece.step_M
            piece = piece.where((step_M >= self.steps.start) & (step_M < self.steps.stop))
        if self.outlying is not None:
            size_M = self.outlying.sizes(piece.place_M, piece.shift_M)
            piece = piece.where(size_M >= self.outlying.least)
        return piece


def together(pieces: Sequence[Piece]) -> Piece:
    columns = zip(*(vars(piece).values() for piece in pieces), strict=True)
    return Piece(*map(np.concatenate, columns))


@dataclass(frozen=True, eq=False)
class Weighing:
    """How much a row counts."""

    kind: Weight
    weights: StartWeights | None = None
    """Needed for *effect*."""

    @property
    def columns(self) -> tuple[str, ...]:
        return {"count": (), "shift": ("shift",), "effect": ("shift", "step")}[self.kind]

    def of(self, piece: Piece) -> np.ndarray | None:
        """Weight of each row, float64 [M]; None where each counts once."""
        if self.kind == "count":
            return None
        size_M = np.abs(piece.shift_M).astype(np.float64)
        if self.kind == "shift":
            return size_M
        assert self.weights is not None
        return size_M * np.abs(self.weights.of_rows(piece.step_M, piece.place_M))


def tokens_of(piece: Piece, token_NT: np.ndarray) -> np.ndarray:
    """The token at each row's datum and position, [M]."""
    flat_M = piece.datum_M.astype(np.int64) * token_NT.shape[1] + piece.position_M
    return token_NT.ravel()[flat_M]
