"""From steps to segments: a buffer on the training thread, a writer beside it.

The training thread only appends arrays. When a segment is full it goes, with a copy of the weights,
to the backlog, whose thread sorts, encodes and stores it, and writes the marker last. If the store
is slower than training, closed segments pile up to ``store.max_pending_bytes``; then training
waits.

Of several workers each stores its own rows. The first one stores what a run has once, and the
marker when all have told it what they stored.

Shapes: M outlier.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from capture import checkpoint, shards
from capture.backlog import Backlog, Waiting
from capture.gradients import Layout
from capture.group import ALONE, Group
from capture.markers import File, Marker, segment_key, total_bytes, write_marker
from capture.observer import Observation
from capture.outliers import Outliers
from capture.schema import EVALUATIONS, OUTLIERS, STEPS
from capture.store import Store
from capture.tally import Sums
from capture.tally_tables import encoded

FAREWELL_SECONDS = 5.0
"""For what is closed and not yet stored when a user stops the capture."""


@dataclass
class OpenSegment:
    """What has been recorded of the segment that is under way."""

    first_step: int
    steps: list[dict[str, object]] = field(default_factory=list)
    evaluations: list[dict[str, object]] = field(default_factory=list)
    outliers: list[dict[str, np.ndarray]] = field(default_factory=list)
    tallies: list[tuple[int, Sums]] = field(default_factory=list)
    """Windows of training that ended within the segment."""

    @property
    def end_step(self) -> int:
        return self.first_step + len(self.steps)

    def num_bytes(self) -> int:
        """Held in memory, but for a few rows of losses."""
        outliers = sum(column.nbytes for piece in self.outliers for column in piece.values())
        sums = [tensor for _, sums in self.tallies for tensor in sums.sum_VK.values()]
        return outliers + sum(tensor.nbytes for tensor in sums)


class Recorder:
    """Writes a run's segments in order, behind the back of the training loop."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        done: list[Marker],
        *,
        group: Group = ALONE,
        may_commit: Callable[[], None] = lambda: None,
        report: Callable[[Waiting], None] = lambda event: None,
    ) -> None:
        """``done``: the segments that are committed already.

        ``may_commit`` is called before a segment is written, and again before its marker; it raises
        if that may not be. ``group``: the workers that record the run together.
        """
        self.group = group
        self.writers = group.apart()
        """The same, for the thread that writes."""
        self.stored: dict[int, list[Part]] = {}
        """By segment: what all workers have stored of those whose markers are not written yet."""
        self.store = store
        self.layout = layout
        self.segment = len(done)
        self.open = OpenSegment(done[-1].end_step if done else 0)
        self.rows = sum(file.rows or 0 for marker in done for file in marker.files_of("outliers"))
        """Outlier rows recorded so far, stored or about to be; other workers' taken as ours."""
        self.may_commit = may_commit
        self.earlier_bytes = total_bytes(done)
        self.backlog = Backlog(store.config, report)

    @property
    def stored_bytes(self) -> int:
        """Bytes of committed segments."""
        return self.earlier_bytes + self.backlog.stored_bytes

    def add_step(self, observed: Observation, datum_N: np.ndarray) -> None:
        """Record what a step did; ``datum_N`` maps slot to datum."""
        self.open.steps.append(observed.row)
        if observed.outliers:
            self.add_outliers(observed.row["step"], observed.outliers, datum_N)

    def add_outliers(self, step: object, outliers: Outliers, datum_N: np.ndarray) -> None:
        slot_M = outliers.slot_M.cpu().numpy().astype(np.int16)
        self.open.outliers.append(
            {
                "step": np.full(len(slot_M), step, np.int32),
                "slot": slot_M,
                "datum": datum_N.astype(np.int32)[slot_M],
                "column": outliers.column_M.cpu().numpy(),
                "shift": outliers.shift_M.cpu().numpy(),
                "position": outliers.position_M.cpu().numpy().astype(np.int16),
            }
        )
        self.rows += len(slot_M) * self.group.size

    def add_evaluation(self, row: dict[str, object]) -> None:
        """Record how a held-out split is predicted; for the first worker alone."""
        self.open.evaluations.append(row)

    def add_tallies(self, window: int, sums: Sums) -> None:
        """Record the tallies of a window that has ended, for the first worker alone."""
        self.open.tallies.append((window, sums))

    def commit(self, weights: dict[str, Tensor]) -> None:
        """Close the open segment and have it written; waits while too much is pending already.

        ``weights``: of the first worker alone.
        """
        done, self.open = self.open, OpenSegment(self.open.end_step)
        segment, self.segment = self.segment, self.segment + 1
        num_bytes = done.num_bytes() + sum(tensor.nbytes for tensor in weights.values())
        self.backlog.make_room(num_bytes)
        load = Load(
            self.backlog.take_waited_seconds(), pending_bytes=self.backlog.pending_bytes + num_bytes
        )
        write = partial(self.write, segment, done, weights, load)
        self.backlog.add(num_bytes, write)

    def write(
        self, segment: int, done: OpenSegment, weights: dict[str, Tensor], load: "Load"
    ) -> int:
        """Store a segment, on the backlog's thread; returns its bytes.

        Can be called again when the store was away: what is stored is told to the others once.
        """
        if segment not in self.stored:
            self.may_commit()
            rank = self.group.rank
            files = write_rows(self.store, self.layout, segment, done, rank)
            if rank == 0:
                files += write_shared(self.store, segment, done, weights)
            part = Part(files, self.store.take_retries(), load.waited_seconds, load.pending_bytes)
            told = self.writers.gather(asdict(part))
            self.stored[segment] = [part_of(values) for values in told]
        marker = marker_of(done, self.stored[segment])
        if self.group.rank == 0:
            self.may_commit()
            write_marker(self.store, segment_key(segment), marker)
        del self.stored[segment]
        return total_bytes([marker])

    def look(self) -> None:
        """Raise what writing has met so far; report if the store does not serve."""
        self.backlog.look()

    def settle(self) -> None:
        """Wait until all that was committed is stored; raises what writing has met."""
        self.backlog.settle()

    def close(self) -> None:
        """Finish writing what was committed, an open segment left out; raises what it meets."""
        try:
            self.settle()
        finally:
            self.backlog.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """As ``close``; who is here because of an error hears of that one only."""
        if error is None:
            self.close()
        else:
            self.backlog.close(None if isinstance(error, Exception) else FAREWELL_SECONDS)


@dataclass(frozen=True)
class Load:
    """What a segment met when it was closed."""

    waited_seconds: float
    pending_bytes: int


@dataclass(frozen=True)
class Part:
    """What one worker has stored of a segment, and what it met."""

    files: list[File]
    retries: int
    waited_seconds: float
    pending_bytes: int


def part_of(values: dict[str, Any]) -> Part:
    return Part(**{**values, "files": [File(**file) for file in values["files"]]})


def marker_of(done: OpenSegment, parts: list[Part]) -> Marker:
    """A segment of which the workers have stored these parts."""
    return Marker(
        done.first_step,
        done.end_step,
        tuple(file for part in parts for file in part.files),
        retries=sum(part.retries for part in parts),
        waited_seconds=round(max(part.waited_seconds for part in parts), 3),
        pending_bytes=sum(part.pending_bytes for part in parts),
    )


def write_rows(
    store: Store, layout: Layout, segment: int, done: OpenSegment, rank: int
) -> list[File]:
    """Store one worker's shards of a segment."""
    if not any(len(piece["column"]) for piece in done.outliers):
        return []
    key = f"outliers/segment-{segment:06d}-w{rank:02d}.parquet"
    return [put_table(store, key, "outliers", outlier_table(done, layout))]


def write_shared(
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


def put_table(store: Store, key: str, kind: str, rows: pa.Table) -> File:
    data = shards.encode(rows)
    store.put(key, data)
    return File.of(key, kind, data, rows.num_rows)


def put_tallies(store: Store, tallies: list[tuple[int, Sums]]) -> list[File]:
    files = []
    for window, sums in tallies:
        for key, rows, data in encoded(sums, window):
            store.put(key, data)
            files.append(File.of(key, "tallies", data, rows))
    return files


def put_bytes(store: Store, key: str, kind: str, data: bytes) -> File:
    store.put(key, data)
    return File.of(key, kind, data)


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
