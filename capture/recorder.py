"""From steps to segments: a buffer on the training thread, a writer beside it.

The training thread only appends arrays. When a segment is full it goes, with a copy of the weights,
to the backlog, whose thread sorts, encodes and stores it, and writes the marker last. Factors, of
which a segment has too many, go there by the table, a few megabytes at a time. If the store is
slower than training, what is closed piles up to ``store.max_pending_bytes``; then training waits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from capture.backlog import Backlog, Waiting
from capture.factor_parts import Part
from capture.gradients import Layout
from capture.markers import Marker, segment_key, total_bytes, write_marker
from capture.observer import Observation
from capture.segments import OpenSegment, put_part, put_segment
from capture.store import Store
from capture.tally import Sums

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
        may_commit: Callable[[], None] = lambda: None,
        report: Callable[[Waiting], None] = lambda event: None,
    ) -> None:
        """``done``: the segments that are committed already.

        ``may_commit`` is called before a segment is written, and again before its marker; it raises
        if that may not be.
        """
        self.store = store
        self.layout = layout
        self.segment = len(done)
        self.open = OpenSegment(done[-1].end_step if done else 0)
        self.rows = sum(file.rows or 0 for marker in done for file in marker.files_of("outliers"))
        """Outlier rows recorded so far, stored or about to be."""
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
            self.rows += len(observed.outliers.slot_M)

    def send(self, parts: list[Part]) -> None:
        """Have tables of factors of the open segment written."""
        for part in parts:
            self.backlog.make_room(part.num_bytes)
            self.backlog.add(
                part.num_bytes, partial(self.write_part, self.segment, self.open, part)
            )

    def add_evaluation(self, row: dict[str, object]) -> None:
        self.open.evaluations.append(row)

    def add_tallies(self, window: int, sums: Sums) -> None:
        """Record the tallies of a window of training that has ended."""
        self.open.tallies.append((window, sums))

    def commit(self, weights: dict[str, Tensor]) -> None:
        """Close the open segment and have it written; waits while too much is pending already."""
        self.send(self.open.parts.close())
        done, self.open = self.open, OpenSegment(self.open.end_step)
        segment, self.segment = self.segment, self.segment + 1
        num_bytes = done.num_bytes() + sum(tensor.nbytes for tensor in weights.values())
        self.backlog.make_room(num_bytes)
        load = Load(
            self.backlog.take_waited_seconds(), pending_bytes=self.backlog.pending_bytes + num_bytes
        )
        write = partial(self.write, segment, done, weights, load)
        self.backlog.add(num_bytes, write)

    def write_part(self, segment: int, done: OpenSegment, part: Part) -> int:
        """Store a table of factors, on the backlog's thread; its bytes count with the segment's."""
        self.may_commit()
        done.factors.append(put_part(self.store, segment, part))
        return 0

    def write(
        self, segment: int, done: OpenSegment, weights: dict[str, Tensor], load: "Load"
    ) -> int:
        """Store a segment, on the backlog's thread; returns its bytes."""
        self.may_commit()
        files = put_segment(self.store, self.layout, segment, done, weights)
        marker = Marker(
            done.first_step,
            done.end_step,
            tuple(files),
            retries=self.store.take_retries(),
            waited_seconds=round(load.waited_seconds, 3),
            pending_bytes=load.pending_bytes,
        )
        self.may_commit()
        write_marker(self.store, segment_key(segment), marker)
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
