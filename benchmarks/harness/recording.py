"""Capture as a run does it: ``Observer`` observes the steps, and ``Recorder`` may record them.

A single step of recording cannot be timed, because a thread writes a segment while the next one
trains. A block is therefore two segments long. The first segment is untimed and ends with its
commit. While the timed second segment trains, the first is sorted, encoded and stored on the same
cores. The block ends with the commit of the second, which copies the weights and waits if the
first is not stored yet. The timed half thus trains one segment and writes one, as each segment of a
long run does. The benchmark waits for the second write after the clock has stopped, so that it
does not compete with the next method.
"""

from collections.abc import Collection
from dataclasses import dataclass

from benchmarks.harness.timing import Line, stopwatch
from benchmarks.harness.workbench import Workbench
from capture.config.records import RecordKind
from capture.device import deterministic, packing_threads
from capture.engine.observer import Observation
from capture.engine.step_plan import PlannedStep
from capture.format.chain import read_segments
from capture.format.markers import START, Marker, write_marker
from capture.store.store import Store
from capture.training.recorder import Recorder


@dataclass(frozen=True)
class Sizes:
    """Bytes of the recorded segments on the store."""

    bytes_per_row: float
    """Bytes of the outlier shards per outlier."""
    bytes_per_datum: float
    """Bytes of all files, checkpoints included, per datum and step."""


def observe(bench: Workbench, planned: PlannedStep) -> Observation:
    """Take a step with shifts, audit, outliers and positions, under the settings of a run."""
    with deterministic():
        return bench.observer.step(planned)


def observe_untallied(bench: Workbench, planned: PlannedStep) -> Observation:
    """Like ``observe``, but with ``capture.tally.enabled=false``."""
    tally, bench.observer.tally = bench.observer.tally, None
    try:
        return observe(bench, planned)
    finally:
        bench.observer.tally = tally


def observe_kinds(
    bench: Workbench, planned: PlannedStep, kinds: frozenset[RecordKind]
) -> Observation:
    """Take a step as a run does that records these kinds."""
    observer, engine = bench.observer, bench.engine
    before = observer.kinds, observer.tally, engine.units
    observer.kinds = kinds
    observer.tally = observer.tally if "tallies" in kinds else None
    engine.units = engine.units if kinds else {}
    try:
        return observe(bench, planned)
    finally:
        observer.kinds, observer.tally, engine.units = before


class Recording:
    """Takes and records steps; commits a segment after every ``segment_steps`` of them."""

    def __init__(
        self,
        bench: Workbench,
        store: Store,
        segment_steps: int,
        kinds: Collection[RecordKind] = ("outliers", "tallies"),
    ) -> None:
        """``kinds`` are the records to write; without any, only checkpoints are written."""
        self.bench = bench
        self.store = store
        self.segment_steps = segment_steps
        self.kinds = frozenset(kinds)
        write_marker(store, START, Marker(0, 0, ()))  # segment markers refer to it
        threads = packing_threads(bench.engine.device)
        self.recorder = Recorder(store, bench.observer.layout, [], packing_threads=threads)

    def step(self, planned: PlannedStep) -> None:
        observed = observe_kinds(self.bench, planned, self.kinds)
        self.recorder.add_step(observed, planned.datum_N)
        if len(self.recorder.open.steps) == self.segment_steps:
            self.recorder.commit(self.bench.engine.snapshot())

    def line(self, name: str, note: str) -> Line:
        """Return a line whose blocks are an untimed and a timed segment."""
        steps = self.segment_steps
        flush = self.recorder.flush
        return Line(name, note, stopwatch(self.step), steps, warmup=steps, flush=flush)

    def sizes(self) -> Sizes:
        markers = read_segments(self.store)
        files = [file for marker in markers for file in marker.files_of("outliers")]
        rows = sum(file.rows or 0 for file in files) or 1
        steps = sum(marker.end_step - marker.first_step for marker in markers)
        datums = steps * self.bench.plan.config.training.batch
        return Sizes(
            sum(file.num_bytes for file in files) / rows, self.recorder.stored_bytes / datums
        )
