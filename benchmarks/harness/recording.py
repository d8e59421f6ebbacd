"""Capture as a run does it: steps observed by ``Observer``, recorded by ``Recorder`` or not at all.

Recording cannot be timed by the step: a segment is written by a thread beside the training of the
next one. So a block is two segments long. The first is untimed and ends with its commit; while the
second is trained under the clock, the first is sorted, encoded and stored on the same cores, and
the block ends with the commit of the second, which copies the weights and waits if the first is not
stored yet. The timed half thus trains one segment and writes one segment, which is what each
segment of a long run does. The writer of the second is waited for after the clock has stopped, so
that it does not compete with the next method.
"""

from collections.abc import Collection
from dataclasses import dataclass

from benchmarks.harness.timing import Line, stopwatch
from benchmarks.harness.workbench import Workbench
from capture.config.records import RecordKind
from capture.device import deterministic, packing_threads
from capture.engine.observer import Observation
from capture.engine.step_plan import PlannedStep
from capture.format.markers import START, Marker, read_segments, write_marker
from capture.store.store import Store
from capture.training.recorder import Recorder


@dataclass(frozen=True)
class Sizes:
    """What the recorded segments take on the store."""

    bytes_per_row: float
    """Of an outlier shard, per outlier."""
    bytes_per_datum: float
    """Everything, checkpoints included, per datum and step."""


def observe(bench: Workbench, turn: PlannedStep) -> Observation:
    """A step with shifts, audit, outliers and positions, under the product's own settings."""
    with deterministic():
        return bench.observer.step(turn)


def observe_untallied(bench: Workbench, turn: PlannedStep) -> Observation:
    """The same with ``capture.shifts.tallies.enabled=false``."""
    tally, bench.observer.tally = bench.observer.tally, None
    try:
        return observe(bench, turn)
    finally:
        bench.observer.tally = tally


def observe_kinds(bench: Workbench, turn: PlannedStep, kinds: frozenset[RecordKind]) -> Observation:
    """A step of which these kinds are recorded, as a run of those settings takes it."""
    observer, engine = bench.observer, bench.engine
    before = observer.kinds, observer.tally, engine.units
    observer.kinds = kinds
    observer.tally = observer.tally if "tallies" in kinds else None
    engine.units = engine.units if kinds else {}
    try:
        return observe(bench, turn)
    finally:
        observer.kinds, observer.tally, engine.units = before


class Recording:
    """Steps that are recorded, a commit after every ``segment_steps`` of them."""

    def __init__(
        self,
        bench: Workbench,
        store: Store,
        segment_steps: int,
        kinds: Collection[RecordKind] = ("outliers", "tallies"),
    ) -> None:
        """``kinds``: what is recorded; none for checkpoints alone."""
        self.bench = bench
        self.store = store
        self.segment_steps = segment_steps
        self.kinds = frozenset(kinds)
        write_marker(store, START, Marker(0, 0, ()))  # which those of segments follow
        at_once = packing_threads(bench.engine.device)
        self.recorder = Recorder(store, bench.observer.layout, [], packing_threads=at_once)

    def step(self, turn: PlannedStep) -> None:
        observed = observe_kinds(self.bench, turn, self.kinds)
        self.recorder.add_step(observed, turn.datum_N)
        if len(self.recorder.open.steps) == self.segment_steps:
            self.recorder.commit(self.bench.engine.snapshot())

    def line(self, name: str, note: str) -> Line:
        """Blocks of an untimed and a timed segment."""
        steps = self.segment_steps
        settle = self.recorder.flush
        return Line(name, note, stopwatch(self.step), steps, warmup=steps, settle=settle)

    def sizes(self) -> Sizes:
        markers = read_segments(self.store)
        files = [file for marker in markers for file in marker.files_of("outliers")]
        rows = sum(file.rows or 0 for file in files) or 1
        steps = sum(marker.end_step - marker.first_step for marker in markers)
        datums = steps * self.bench.plan.config.training.batch
        return Sizes(
            sum(file.num_bytes for file in files) / rows, self.recorder.stored_bytes / datums
        )
