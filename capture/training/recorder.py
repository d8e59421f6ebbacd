"""Collect the steps of a segment on the training thread and write segments on a second thread.

The training thread only appends arrays. When a segment is full, it goes with a copy of the weights
to the write queue. The queue's thread sorts, encodes and stores it, and writes the marker last.
Factors of a whole segment would need too much memory, so they go to the queue table by table, a few
megabytes at a time. Packing them is expensive: if no core is free for it beside training, training
waits while all cores pack one table each. If the store is slower than training, closed segments
accumulate up to ``store.max_pending_bytes``; then training waits.

With several workers, each stores its own rows. The first worker also stores what a run has only
once, and writes the marker when all workers have reported their files.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from capture.engine.observer import Observation
from capture.format.factor_parts import FactorPart, require_few_tables
from capture.format.markers import (
    Marker,
    read_marker,
    segment_key,
    total_bytes,
    write_marker,
)
from capture.gradients.layout import Layout
from capture.process_group import SINGLE_PROCESS, Group
from capture.shifts.tallies import TallySums
from capture.store import Store
from capture.training.open_window import OpenWindow, remove_window
from capture.training.segments import (
    OpenSegment,
    Packed,
    pack_part,
    put_packed,
    put_rows,
    put_shared,
)
from capture.training.worker_files import WorkerFiles, gather_files, marker_of, tell_failure
from capture.training.write_queue import WriteDelay, WriteQueue

INTERRUPT_WAIT_SECONDS = 5.0
"""When a user stops the capture: how long to wait for closed segments to be stored."""
GROUP_WAIT_SECONDS = 30.0
"""After an error: how long to wait for other workers to store their part of closed segments."""


class Recorder:
    """Write the segments of a run in order, on a second thread."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        done: list[Marker],
        *,
        group: Group = SINGLE_PROCESS,
        packing_threads: int = 0,
        segment_steps: int = 0,
        may_commit: Callable[[], None] = lambda: None,
        report: Callable[[WriteDelay], None] = lambda event: None,
    ) -> None:
        """Start the writing thread.

        ``done``: markers of the segments that are committed already, in order.
        ``group``: the workers that record the run together.
        ``packing_threads``: how many tables of factors are packed at once while training waits;
        0: the writing thread packs them one by one while training continues.
        ``segment_steps``: how many steps a segment will have, to refuse too many files in time;
        0 if that is not known.
        ``may_commit``: called before a segment is written and again before its marker; raises if
        this process may no longer write.
        ``report``: called on the training thread while it waits for the store.
        """
        self.packing_threads = packing_threads
        self.segment_steps = segment_steps
        self.parts: list[FactorPart] = []
        """Full tables of factors of the open segment that are not packed yet."""
        self.group = group
        self.writers = group.for_other_thread()
        """The same workers with a separate communicator, for the writing thread."""
        self.stored: dict[int, list[WorkerFiles]] = {}
        """Files of all workers by segment, for segments whose marker is not written yet."""
        self.store = store
        self.layout = layout
        self.segment = len(done)
        self.num_exchanges = len(done)
        """Segments whose files this worker and the others have told one another."""
        self.open = OpenSegment(done[-1].end_step if done else 0)
        self.rows = sum(file.rows or 0 for marker in done for file in marker.files_of("outliers"))
        """Outlier rows recorded so far, stored or queued, assuming that workers have equally many.
        """
        self.may_commit = may_commit
        self.earlier_bytes = total_bytes(done)
        self.queue = WriteQueue(store.config, report)

    @property
    def stored_bytes(self) -> int:
        """Bytes of committed segments."""
        return self.earlier_bytes + self.queue.stored_bytes

    def add_step(self, observed: Observation, datum_N: np.ndarray) -> None:
        """Record a step; ``datum_N`` holds the datum of each slot.

        If the step fills a table of factors, it waits while too many bytes are pending.
        """
        if observed.factors and not self.open.steps:
            layout, rows = observed.factors
            workers, datums = self.group.size, len(rows.datum_N)
            require_few_tables(layout, self.segment_steps, datums, workers=workers)
        self.send(self.open.add_step(observed, datum_N))
        if observed.outliers:
            self.rows += len(observed.outliers.slot_M) * self.group.size

    def send(self, parts: list[FactorPart]) -> None:
        """Take full tables of factors; pack them when there is one for each packing thread."""
        self.parts += parts
        if len(self.parts) >= self.packing_threads:
            self.pack()

    def pack(self) -> None:
        """Queue all full tables of factors, packed now or later on the writing thread."""
        parts, self.parts = self.parts, []
        tasks = [partial(pack_part, self.segment, part, self.group.rank) for part in parts]
        if not self.packing_threads:
            for part, pack in zip(parts, tasks, strict=True):
                self.write_later(part.num_bytes, pack)
        elif parts:
            with ThreadPoolExecutor(self.packing_threads) as pool:
                tables = list(pool.map(lambda pack: pack(), tasks))
            for table in tables:
                self.write_later(len(table[1]), partial(already_packed, table))

    def write_later(self, num_bytes: int, pack: Callable[[], Packed]) -> None:
        self.queue.wait_for_room(num_bytes)
        self.queue.add(num_bytes, partial(self.write_part, self.open, pack))

    def add_evaluation(self, row: dict[str, object]) -> None:
        """Record a row of the table ``evaluations``; only the first worker calls this."""
        self.open.evaluations.append(row)

    def add_tallies(self, window: int, sums: TallySums) -> None:
        """Record the tallies of a window that has ended; only the first worker calls this."""
        self.open.tallies.append((window, sums))

    def commit(self, weights: dict[str, Tensor], window: OpenWindow | None = None) -> None:
        """Close the open segment and queue it; waits while too many bytes are pending.

        ``weights``: tensors of the checkpoint, copied; only the first worker's are stored.
        ``window``: sums of the tally window that is open now, to be stored after the segment.
        """
        self.send(self.open.parts.close())
        self.pack()
        done, self.open = self.open, OpenSegment(self.open.end_step)
        segment, self.segment = self.segment, self.segment + 1
        num_bytes = done.num_bytes() + sum(tensor.nbytes for tensor in weights.values())
        self.queue.wait_for_room(num_bytes)
        load = QueueLoad(
            self.queue.take_waited_seconds(), pending_bytes=self.queue.pending_bytes + num_bytes
        )
        write = partial(self.write, segment, done, weights, load)
        self.queue.add(num_bytes, write)
        if window:
            self.queue.wait_for_room(window.num_bytes)
            self.queue.add(window.num_bytes, partial(self.write_window, segment, window))
        elif done.tallies and self.group.rank == 0:
            self.queue.add(0, self.remove_window)

    def write_window(self, segment: int, window: OpenWindow) -> int:
        """Store the sums of an open tally window, on the writing thread."""
        own = read_marker(self.store, segment_key(segment)) if self.group.rank == 0 else None
        return window.write(self.store, self.writers, own, self.may_commit)

    def remove_window(self) -> int:
        """Remove the stored sums of a tally window that has ended, on the writing thread."""
        self.may_commit()
        remove_window(self.store)
        return 0

    def write_part(self, done: OpenSegment, pack: Callable[[], Packed]) -> int:
        """Store a table of factors, on the writing thread.

        Returns 0: its bytes count with those of its segment, once that has a marker.
        """
        self.may_commit()
        done.factors.append(put_packed(self.store, pack()))
        return 0

    def write(
        self, segment: int, done: OpenSegment, weights: dict[str, Tensor], load: "QueueLoad"
    ) -> int:
        """Store a segment and its marker, on the writing thread; returns its size in bytes."""
        # The queue calls this again if the store was away. Workers exchange their files once a
        # segment (a collective), so the result is kept until the marker is written.
        if segment not in self.stored:
            self.may_commit()
            rank = self.group.rank
            files = put_rows(self.store, self.layout, segment, done, rank)
            if rank == 0:
                files += put_shared(self.store, segment, done, weights)
            own = WorkerFiles(
                files,
                self.store.take_retries(),
                load.waited_seconds,
                load.pending_bytes,
                done.unchecked,
            )
            self.num_exchanges += 1
            self.stored[segment] = gather_files(self.writers, own)
        marker = marker_of(done, self.stored[segment])
        if self.group.rank == 0:
            self.may_commit()
            write_marker(self.store, segment_key(segment), marker)
        del self.stored[segment]
        return total_bytes([marker])

    def check(self) -> None:
        """Raise the error of the writing thread, if any; report if the store does not answer."""
        self.queue.check()

    def flush(self) -> None:
        """Wait until all committed segments are stored; raises the error of the writing thread."""
        self.queue.flush()

    def close(self) -> None:
        """Store all committed segments and stop the writing thread; drops the open segment.

        Raises the error of the writing thread.
        """
        try:
            self.flush()
        finally:
            self.queue.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Call ``close``; after an error in the block, do not raise errors of the writing thread.

        After Ctrl-C, it waits at most ``INTERRUPT_WAIT_SECONDS``, and ``GROUP_WAIT_SECONDS`` for
        other workers, whose store may be what failed.
        """
        if error is None:
            self.close()
        elif isinstance(error, Exception):
            if self.queue.failure is not None and self.segment > self.num_exchanges:
                tell_failure(self.writers, self.queue.failure, GROUP_WAIT_SECONDS)
            self.queue.close(None if self.group.size == 1 else GROUP_WAIT_SECONDS)
        else:
            self.queue.close(INTERRUPT_WAIT_SECONDS)


def already_packed(table: Packed) -> Packed:
    return table


@dataclass(frozen=True)
class QueueLoad:
    """State of the write queue when a segment was closed."""

    waited_seconds: float
    """How long training has waited for the store since the segment before."""
    pending_bytes: int
    """Memory held by writes that were not done, this segment included."""
