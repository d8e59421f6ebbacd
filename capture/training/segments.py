"""What a segment's files hold, and how they are put: used while training runs and in replaying.

Files come first and the marker that names them last; here are the files.

Shapes: M outlier.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from torch import Tensor

from capture.engine.observer import Observation
from capture.format import checkpoint
from capture.format.factor_parts import FactorParts, Part
from capture.format.markers import File
from capture.format.tally_tables import encoded
from capture.gradients.layout import Layout
from capture.shards import encoding as shards
from capture.shards.schema import EVALUATIONS, OUTLIERS, STEPS
from capture.shifts.outliers import Outliers
from capture.shifts.tallies import Sums
from capture.store.store import Store

Packed = tuple[File, memoryview]
"""A file and its bytes."""


@dataclass
class OpenSegment:
    """What has been recorded of the segment that is under way."""

    first_step: int
    steps: list[dict[str, object]] = field(default_factory=list)
    evaluations: list[dict[str, object]] = field(default_factory=list)
    outliers: list[dict[str, np.ndarray]] = field(default_factory=list)
    tallies: list[tuple[int, Sums]] = field(default_factory=list)
    """Windows of training that ended within the segment."""
    parts: FactorParts = field(default_factory=FactorParts)
    """Factors that are not on their way yet."""
    factors: list[File] = field(default_factory=list)
    """Tables of factors that are stored already."""

    @property
    def end_step(self) -> int:
        return self.first_step + len(self.steps)

    def num_bytes(self) -> int:
        """Held in memory, but for factors and a few rows of losses."""
        outliers = sum(column.nbytes for piece in self.outliers for column in piece.values())
        sums = [tensor for _, sums in self.tallies for tensor in sums.sum_VK.values()]
        return outliers + sum(tensor.nbytes for tensor in sums)

    def add_step(self, observed: Observation, datum_N: np.ndarray) -> list[Part]:
        """Add what a step did; returns the tables of factors that are full and can be stored.

        ``datum_N`` maps slot to datum.
        """
        self.steps.append(observed.row)
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
    """Store what a segment has once, however many workers there are."""
    name = f"segment-{segment:06d}"
    files = [
        put_table(store, f"steps/{name}.parquet", "steps", table(done.steps, STEPS)),
        put_bytes(
            store, checkpoint.key_of(done.end_step), "checkpoints", checkpoint.encode(weights)
        ),
    ]
    if done.evaluations:
        rows = table(done.evaluations, EVALUATIONS)
        files.append(put_table(store, f"evaluations/{name}.parquet", "evaluations", rows))
    return files + put_tallies(store, done.tallies)


def put_rows(
    store: Store, layout: Layout, segment: int, done: OpenSegment, rank: int = 0
) -> list[File]:
    """Store one worker's outliers of a segment; its factors are stored already."""
    return put_outliers(store, layout, segment, done, rank) + done.factors


def put_outliers(
    store: Store, layout: Layout, segment: int, done: OpenSegment, rank: int = 0
) -> list[File]:
    """The segment's outliers, if it has any."""
    if not any(len(piece["column"]) for piece in done.outliers):
        return []
    key = f"outliers/segment-{segment:06d}-{worker(rank)}.parquet"
    return [put_table(store, key, "outliers", outlier_table(done, layout))]


def packed(segment: int, part: Part, rank: int = 0) -> Packed:
    """A table of factors as it is stored."""
    data, num_rows = part.encode()
    return File.of(part.key(segment, worker(rank)), "factors", data, num_rows), data


def put_packed(store: Store, table: Packed) -> File:
    file, data = table
    store.put(file.key, data)
    return file


def put_part(store: Store, segment: int, part: Part) -> File:
    """Pack and store a table of factors."""
    return put_packed(store, packed(segment, part))


def worker(rank: int) -> str:
    """How the keys of a worker's shards end."""
    return f"w{rank:02d}"


def put_tallies(store: Store, tallies: list[tuple[int, Sums]]) -> list[File]:
    files = []
    for window, sums in tallies:
        for key, rows, data in encoded(sums, window):
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
    """The segment's outliers, sorted by unit (alphabetically), index, step and slot.

    Row groups then span neighbours in the alphabet, so that the least and greatest unit of a group
    say which units it can hold.
    """
    columns = {
        name: np.concatenate([piece[name] for piece in done.outliers]) for name in done.outliers[0]
    }
    column_M = columns.pop("column")
    unit_M = np.searchsorted(layout.offsets, column_M, side="right") - 1
    index_M = column_M - np.array(layout.offsets)[unit_M]
    names = sorted(layout.names)
    rank_U = np.array([names.index(name) for name in layout.names], np.int32)
    order_M = stable_order(index_M)
    order_M = order_M[stable_order(rank_U[unit_M][order_M])]
    columns["index"] = index_M.astype(np.int32)
    sorted_columns = {name: values[order_M] for name, values in columns.items()}
    unit_codes_M = rank_U[unit_M[order_M]].astype(np.int16)
    units = pa.DictionaryArray.from_arrays(unit_codes_M, pa.array(names))
    return pa.table({**sorted_columns, "unit": units}).select(OUTLIERS.names).cast(OUTLIERS)


def stable_order(key_M: np.ndarray) -> np.ndarray:
    """Places in ascending order of a key, equal keys in their old order: a radix sort.

    NumPy sorts 16-bit integers in linear time, so the key goes through in 16-bit digits.
    """
    order_M = np.arange(len(key_M))
    for shift in range(0, max(1, int(key_M.max(initial=0)).bit_length()), 16):
        digit_M = ((key_M >> shift) & 0xFFFF).astype(np.uint16)
        order_M = order_M[np.argsort(digit_M[order_M], kind="stable")]
    return order_M
