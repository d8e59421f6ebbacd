"""From steps to segments: a buffer on the training thread, a writer beside it.

The training thread only appends arrays. When a segment is full it goes, with a copy of the weights,
to the backlog, whose thread sorts, encodes and stores it, and writes the marker last. Factors, of
which a segment has too many, go there by the table, a few megabytes at a time. Packing them is much
work: where no core is free for it beside training, tables are packed on all cores at once while
training waits. If the store is slower than training, what is closed piles up to
``store.max_pending_bytes``; then training waits.

Of several workers each stores its own rows. The first one stores what a run has once, and the
marker when all have told it what they stored.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from capture.engine.observer import Observation
from capture.format.factor_parts import Part
from capture.format.markers import File, Marker, segment_key, total_bytes, write_marker
from capture.gradients.layout import Layout
from capture.process_group import ALONE, Group
from capture.shifts.tallies import Sums
from capture.store.store import Store
from capture.training.segments import OpenSegment, Packed, packed, put_packed, put_rows, put_shared
from capture.training.write_queue import Backlog, Waiting

FAREWELL_SECONDS = 5.0
"""For what is closed and not yet stored when a user stops the capture."""


class Recorder:
    """Writes a run's segments in order, behind the back of the training loop."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        done: list[Marker],
        *,
        group: Group = ALONE,
        packers: int = 0,
        may_commit: Callable[[], None] = lambda: None,
        report: Callable[[Waiting], None] = lambda event: None,
    ) -> None:
        """``done``: the segments that are committed already.

        ``may_commit`` is called before a segment is written, and again before its marker; it raises
        if that may not be. ``group``: the workers that record the run together. ``packers``: tables
        of factors that are packed at once while training waits; 0: one by one beside training.
        """
        self.packers = packers
        self.parts: list[Part] = []
        """Tables of factors of the open segment that wait for others to be packed with."""
        self.group = group
        self.writers = group.apart()
        """The same, for the thread that writes."""
        self.stored: dict[int, list[Share]] = {}
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
        """Record what a step did; ``datum_N`` maps slot to datum.

        Waits while too much is pending already, if that fills a table of factors.
        """
        self.send(self.open.add_step(observed, datum_N))
        if observed.outliers:
            self.rows += len(observed.outliers.slot_M) * self.group.size

    def send(self, parts: list[Part]) -> None:
        """Have tables of factors of the open segment packed and written."""
        self.parts += parts
        if len(self.parts) >= self.packers:
            self.pack()

    def pack(self) -> None:
        """Have all tables of factors written that are full, packed now if training waits for it."""
        parts, self.parts = self.parts, []
        make = [partial(packed, self.segment, part, self.group.rank) for part in parts]
        if not self.packers:
            for part, pack in zip(parts, make, strict=True):
                self.write_later(part.num_bytes, pack)
        elif parts:
            with ThreadPoolExecutor(self.packers) as pool:
                tables = list(pool.map(lambda pack: pack(), make))
            for table in tables:
                self.write_later(len(table[1]), partial(given, table))

    def write_later(self, num_bytes: int, pack: Callable[[], Packed]) -> None:
        self.backlog.make_room(num_bytes)
        self.backlog.add(num_bytes, partial(self.write_part, self.open, pack))

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
        self.send(self.open.parts.close())
        self.pack()
        done, self.open = self.open, OpenSegment(self.open.end_step)
        segment, self.segment = self.segment, self.segment + 1
        num_bytes = done.num_bytes() + sum(tensor.nbytes for tensor in weights.values())
        self.backlog.make_room(num_bytes)
        load = Load(
            self.backlog.take_waited_seconds(), pending_bytes=self.backlog.pending_bytes + num_bytes
        )
        write = partial(self.write, segment, done, weights, load)
        self.backlog.add(num_bytes, write)

    def write_part(self, done: OpenSegment, pack: Callable[[], Packed]) -> int:
        """Store a table of factors, on the backlog's thread; its bytes count with the segment's."""
        self.may_commit()
        done.factors.append(put_packed(self.store, pack()))
        return 0

    def write(
        self, segment: int, done: OpenSegment, weights: dict[str, Tensor], load: "Load"
    ) -> int:
        """Store a segment, on the backlog's thread; returns its bytes.

        Can be called again when the store was away: what is stored is told to the others once.
        """
        if segment not in self.stored:
            self.may_commit()
            rank = self.group.rank
            files = put_rows(self.store, self.layout, segment, done, rank)
            if rank == 0:
                files += put_shared(self.store, segment, done, weights)
            share = Share(files, self.store.take_retries(), load.waited_seconds, load.pending_bytes)
            told = self.writers.gather(asdict(share))
            self.stored[segment] = [share_of(values) for values in told]
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


def given(table: Packed) -> Packed:
    """What is packed already."""
    return table


@dataclass(frozen=True)
class Load:
    """What a segment met when it was closed."""

    waited_seconds: float
    pending_bytes: int


@dataclass(frozen=True)
class Share:
    """What one worker has stored of a segment, and what it met."""

    files: list[File]
    retries: int
    waited_seconds: float
    pending_bytes: int


def share_of(values: dict[str, Any]) -> Share:
    return Share(**{**values, "files": [File(**file) for file in values["files"]]})


def marker_of(done: OpenSegment, shares: list[Share]) -> Marker:
    """A segment of which the workers have stored these shares."""
    return Marker(
        done.first_step,
        done.end_step,
        tuple(file for share in shares for file in share.files),
        retries=sum(share.retries for share in shares),
        waited_seconds=round(max(share.waited_seconds for share in shares), 3),
        pending_bytes=sum(share.pending_bytes for share in shares),
    )
