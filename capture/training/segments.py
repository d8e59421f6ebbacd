"""Collect the rows of a segment, build its tables and store its files.

Capture and replay both use this module. It writes files only; the marker that names them is written
after them, by the recorder or by replay.

Shapes: M outlier.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from torch import Tensor

from capture.engine.observer import Observation
from capture.format import checkpoint
from capture.format.factor_parts import FactorPart, FactorParts
from capture.format.markers import File
from capture.format.tally_tables import encode_window
from capture.gradients.layout import Layout
from capture.shards import encoding as shards
from capture.shards.schema import EVALUATIONS, OUTLIERS, STEPS, TASK_EVALUATIONS
from capture.shifts.outliers import Outliers
from capture.shifts.tallies import TallySums
from capture.store import Store

Packed = tuple[File, memoryview]
"""A file and its bytes."""


@dataclass
class OpenSegment:
    """Rows of the segment that is being recorded."""

    first_step: int
    steps: list[dict[str, object]] = field(default_factory=list)
    evaluations: list[dict[str, object]] = field(default_factory=list)
    outliers: list[dict[str, np.ndarray]] = field(default_factory=list)
    tallies: list[tuple[int, TallySums]] = field(default_factory=list)
    """Windows that ended within the segment, each with its sums."""
    parts: FactorParts = field(default_factory=FactorParts)
    """Rows of factors that do not fill a table yet."""
    factors: list[File] = field(default_factory=list)
    """Tables of factors that are stored."""
    unchecked: dict[str, int] = field(default_factory=dict)
    """What could not be checked → how often; see ``Marker``."""

    @property
    def end_step(self) -> int:
        return self.first_step + len(self.steps)

    def num_bytes(self) -> int:
        """Return the memory held by outliers and tallies; factors and losses are not counted."""
        outliers = sum(column.nbytes for piece in self.outliers for column in piece.values())
        sums = [tensor for _, sums in self.tallies for tensor in sums.sum_VK.values()]
        return outliers + sum(tensor.nbytes for tensor in sums)

    def add_step(self, observed: Observation, datum_N: np.ndarray) -> list[FactorPart]:
        """Add a step; returns the tables of factors that are full and can be stored.

        ``datum_N`` holds the datum of each slot.
        """
        self.steps.append(observed.row)
        if reason := observed.unchecked:
            self.unchecked[reason] = self.unchecked.get(reason, 0) + 1
        if observed.outliers:
            rows = outlier_rows(observed.row["step"], observed.outliers, datum_N)
            self.outliers.append(rows)
        return self.parts.add(*observed.factors) if observed.factors else []


def outlier_rows(step: object, outliers: Outliers, datum_N: np.ndarray) -> dict[str, np.ndarray]:
    slot_M = outliers.slot_M.cpu().numpy().astype(np.int16)
    return {
        "step": np.full(len(slot_M), step, np.int32),
        "slot": slot_M,
        "datum": datum_N.astype(np.int32)[slot_M],
        "column": outliers.column_M.cpu().numpy(),
        "shift": outliers.shift_M.cpu().numpy(),
        "position": outliers.position_M.cpu().numpy().astype(np.int16),
    }


# --- files ----------------------------------------------------------------------------------------


def put_shared(
    store: Store, segment: int, done: OpenSegment, weights: dict[str, Tensor]
) -> list[File]:
    """Store the files that a segment has only once: steps, checkpoint, evaluations, tallies."""
    name = f"segment-{segment:06d}"
    files = [
        put_table(store, f"steps/{name}.parquet", "steps", table(done.steps, STEPS)),
        put_bytes(
            store, checkpoint.key_of(done.end_step), "checkpoints", checkpoint.encode(weights)
        ),
    ]
    if done.evaluations:
        text = any(row.get("accuracy") is None for row in done.evaluations)
        rows = table(done.evaluations, EVALUATIONS if text else TASK_EVALUATIONS)
        files.append(put_table(store, f"evaluations/{name}.parquet", "evaluations", rows))
    return files + put_tallies(store, done.tallies)


def put_rows(
    store: Store, layout: Layout, segment: int, done: OpenSegment, rank: int = 0
) -> list[File]:
    """Store one worker's outliers; returns their files and those of its factors, stored before."""
    return put_outliers(store, layout, segment, done, rank) + done.factors


def put_outliers(
    store: Store, layout: Layout, segment: int, done: OpenSegment, rank: int = 0
) -> list[File]:
    """Store one worker's outliers; returns an empty list if there are none."""
    if not any(len(piece["column"]) for piece in done.outliers):
        return []
    key = f"outliers/segment-{segment:06d}-{worker_suffix(rank)}.parquet"
    return [put_table(store, key, "outliers", outlier_table(done, layout))]


def pack_part(segment: int, part: FactorPart, rank: int = 0) -> Packed:
    """Encode a table of factors."""
    data, num_rows = part.encode()
    return File.of(part.key(segment, worker_suffix(rank)), "factors", data, num_rows), data


def put_packed(store: Store, table: Packed) -> File:
    file, data = table
    store.put(file.key, data)
    return file


def put_part(store: Store, segment: int, part: FactorPart) -> File:
    """Encode and store a table of factors."""
    return put_packed(store, pack_part(segment, part))


def worker_suffix(rank: int) -> str:
    """Return the part of a shard's key that names the worker."""
    return f"w{rank:02d}"


def put_tallies(store: Store, tallies: list[tuple[int, TallySums]]) -> list[File]:
    """Store the tallies of windows, one file for each table."""
    files = []
    for window, sums in tallies:
        for key, rows, data in encode_window(sums, window):
            store.put(key, data)
            files.append(File.of(key, "tallies", data, rows))
    return files


def put_table(store: Store, key: str, kind: str, rows: pa.Table) -> File:
    data = shards.encode(rows)
    store.put(key, data)
    return File.of(key, kind, data, rows.num_rows)


def put_bytes(store: Store, key: str, kind: str, data: bytes) -> File:
    store.put(key, data)
    return File.of(key, kind, data)


# --- tables ---------------------------------------------------------------------------------------


def table(rows: list[dict[str, object]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)


def outlier_table(done: OpenSegment, layout: Layout) -> pa.Table:
    """Return the segment's outliers, sorted by unit (alphabetically), index, step and slot.

    A row group then holds units that are neighbours in the alphabet, so that a reader can skip it
    by its smallest and largest unit.
    """
    columns = {
        name: np.concatenate([piece[name] for piece in done.outliers]) for name in done.outliers[0]
    }
    # A column counts all captured parameters; the unit is the last one that begins at or before it.
    column_M = columns.pop("column")
    unit_M = np.searchsorted(layout.offsets, column_M, side="right") - 1
    index_M = column_M - np.array(layout.offsets)[unit_M]
    names = sorted(layout.names)
    rank_U = np.array([names.index(name) for name in layout.names], np.int32)
    # Rows arrive in order of step and slot. Two stable sorts, the less important key first, keep
    # that order within equal (unit, index).
    order_M = stable_order(index_M)
    order_M = order_M[stable_order(rank_U[unit_M][order_M])]
    columns["index"] = index_M.astype(np.int32)
    sorted_columns = {name: values[order_M] for name, values in columns.items()}
    unit_codes_M = rank_U[unit_M[order_M]].astype(np.int16)
    units = pa.DictionaryArray.from_arrays(unit_codes_M, pa.array(names))
    return pa.table({**sorted_columns, "unit": units}).select(OUTLIERS.names).cast(OUTLIERS)


def stable_order(key_M: np.ndarray) -> np.ndarray:
    """Return the indices that sort non-negative integers, equal keys in their old order [M].

    This is a radix sort over 16-bit digits, because NumPy sorts 16-bit integers in linear time.
    """
    order_M = np.arange(len(key_M))
    for shift in range(0, max(1, int(key_M.max(initial=0)).bit_length()), 16):
        digit_M = ((key_M >> shift) & 0xFFFF).astype(np.uint16)
        order_M = order_M[np.argsort(digit_M[order_M], kind="stable")]
    return order_M
