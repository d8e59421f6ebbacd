"""Measure time and bytes of each kind of record on the first steps of a run.

The steps use the run's own model and text. They are recorded into a temporary folder, and nothing
is written to the run's store. Steps with different records alternate, so that other work on the
machine slows all of them equally, and medians are reported. The configured recording is also timed
over whole segments, because training and writing slow each other down.
"""

import itertools
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from capture.config.records import KINDS, RecordKind
from capture.device import deterministic, packing_threads
from capture.engine.build import build_engine
from capture.engine.engine import Engine
from capture.engine.evaluation import evaluate
from capture.engine.observer import Observer, to_device
from capture.engine.step_plan import PlannedStep, StepPlan
from capture.format import checkpoint
from capture.format.chain import read_segments
from capture.format.markers import START, File, Marker, write_marker
from capture.gradients.layout import Layout
from capture.store import Store
from capture.training.recorder import Recorder

Kinds = frozenset[RecordKind]
PLAIN: Kinds = frozenset()
EVERYTHING: Kinds = frozenset(KINDS)
EVALUATED = 100
"""Number of datums whose evaluation is timed."""
SHORT, LONG = 3, 6
"""Steps of the two segments whose files are measured. Two lengths give fixed and per-step costs."""


@dataclass(frozen=True)
class Calibration:
    """The measurements."""

    num_steps: int
    """Number of steps timed with each set of records."""
    step_seconds: dict[Kinds, float]
    """Seconds of a step by the records that it makes, without writing. The empty set is plain
    training."""
    recorded_seconds: float
    """Seconds of a step in a segment with all configured records, packed and stored during the next
    steps. Includes the step's part of a checkpoint, but not storing tallies at a window's end."""
    evaluation_seconds: float
    """Seconds of evaluating one datum."""
    window_seconds: float
    """Seconds of storing the tallies of ``LONG`` steps, with nothing else running."""
    segments: tuple[tuple[File, ...], tuple[File, ...]]
    """The files of a segment of ``SHORT`` steps and of one of ``LONG`` steps."""
    start_bytes: int
    """Bytes of the checkpoint before the first step, without optimizer state."""
    layout: Layout
    """The captured units."""
    factor_row_bytes: int
    """Bytes of one datum's factors before compression."""
    packing_threads: int
    """Factor tables that are packed at once while training waits; 0: one at a time beside
    training."""
    peak_bytes: int
    """Peak memory of this process."""
    device_peak_bytes: int
    """Peak memory of tensors on the CUDA device; 0 without one."""


def calibrate(plan: StepPlan, budget_seconds: float) -> Calibration:
    """Repeat the first steps of a run for about ``budget_seconds``, and record some of them.

    Every segment is recorded, also those that the run leaves out (``capture.outliers.steps``).
    Raises the errors that the run itself would raise before its first step.
    """
    whole = plan.config.capture.at_every_step()
    plan = replace(plan, config=replace(plan.config, capture=whole))
    with deterministic():
        engine = build_engine(plan, KINDS)
        start_bytes = len(checkpoint.encode(engine.snapshot()))
        (short, long), _ = record_segments(plan, engine, EVERYTHING, (SHORT, LONG))
        recorded_seconds, window_seconds = recording_seconds(plan, engine)
        evaluating_seconds = evaluation_seconds(plan, engine)
        # Read the peaks while there is only one observer, as in a run.
        peaks = peak_bytes(), device_peak_bytes(engine.device)
        sets = dict.fromkeys([PLAIN, plan.config.capture.kinds, *map(only, KINDS), EVERYTHING])
        observers = {kinds: observer_of(plan, engine, kinds) for kinds in sets}
        seconds = time_steps(repeated_steps(plan, engine), observers, budget_seconds)
        medians = {kinds: statistics.median(own) for kinds, own in seconds.items()}
        return Calibration(
            min(map(len, seconds.values())),
            medians,
            # A difference of times, which noise can make shorter than the training it contains.
            max(recorded_seconds, medians[PLAIN]),
            evaluating_seconds,
            window_seconds,
            (short, long),
            start_bytes,
            engine.layout,
            factor_row_bytes(plan, engine),
            packing_threads(engine.device),
            *peaks,
        )


def only(kind: RecordKind) -> Kinds:
    return frozenset({kind})


def observer_of(plan: StepPlan, engine: Engine, kinds: Kinds) -> Observer:
    """Return an observer of the engine's model that records ``kinds``.

    Without kinds it observes nothing, for timing plain training. All observers share one optimizer,
    which counts the steps of all of them.
    """
    if kinds:
        return Observer(plan, engine, kinds)
    same = {"seed": engine.seed, "num_steps": engine.num_steps, "last_only": False}
    plain = Engine(engine.model, plan.config.training, units={}, **same)
    plain.optimizer = engine.optimizer
    return Observer(plan, plain, kinds)


def repeated_steps(plan: StepPlan, engine: Engine) -> Iterator[PlannedStep]:
    """Repeat the first steps of the run without end, numbered consecutively from 0.

    Clears the optimizer's state, because its own step count must match these numbers.
    """
    engine.optimizer.state.clear()
    steps = itertools.cycle(list(itertools.islice(plan.planned_steps(0), 2 * LONG)))
    return (replace(planned, step=number) for number, planned in enumerate(steps))


def time_steps(
    planned: Iterator[PlannedStep], observers: dict[Kinds, Observer], budget_seconds: float
) -> dict[Kinds, list[float]]:
    """Time steps by what is recorded of them, at least three of each. Returns seconds."""
    seconds: dict[Kinds, list[float]] = {kinds: [] for kinds in observers}
    began = time.monotonic()
    for observer in observers.values():
        observer.step(next(planned))
    while len(seconds[PLAIN]) < 3 or time.monotonic() - began < budget_seconds:
        for kinds, observer in observers.items():
            step, start = next(planned), time.perf_counter()
            observer.step(step)
            seconds[kinds].append(time.perf_counter() - start)
    return seconds


def record_segments(
    plan: StepPlan, engine: Engine, kinds: Kinds, lengths: Sequence[int], *, settling: bool = True
) -> tuple[list[tuple[File, ...]], list[float]]:
    """Record segments of these lengths into a temporary folder.

    Returns the files of each segment, and a time in seconds. With ``settling`` it is the time from
    the segment's last step until it is stored. Without, it is the time from the end of the segment
    before to its own end, during which that one is stored.
    """
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        write_marker(store, START, Marker(0, 0, ()))
        observer, planned = observer_of(plan, engine, kinds), repeated_steps(plan, engine)
        with Recorder(
            store, observer.layout, [], packing_threads=packing_threads(engine.device)
        ) as recorder:
            start = time.perf_counter()
            for num_steps in lengths:
                for step in itertools.islice(planned, num_steps):
                    recorder.add_step(observer.step(step), step.datum_N)
                if observer.tally and settling:
                    recorder.add_tallies(0, observer.tally.drain())
                if settling:
                    start = time.perf_counter()
                recorder.commit(engine.snapshot())
                if settling:
                    recorder.flush()
                seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
        return [marker.files for marker in read_segments(store)], seconds


def recording_seconds(plan: StepPlan, engine: Engine) -> tuple[float, float]:
    """Return the seconds of a step as configured, and of storing a window's tallies.

    The fixed cost of a segment's end, above all its checkpoint, counts less in the run's longer
    segments. It is found by comparing the ends of segments of two lengths.
    """
    kinds = plan.config.capture.kinds
    others: Kinds = kinds - {"tallies"}
    # The first segment of each recording warms up and is not used.
    _, (_, short, long) = record_segments(plan, engine, others, (1, SHORT, LONG))
    window_seconds = 0.0
    if others != kinds:
        _, (_, together) = record_segments(plan, engine, kinds, (1, LONG))
        window_seconds = max(0.0, together - long)
    # Extrapolate the time of an end to zero steps.
    end = min(long, max(0.0, long - (long - short) / (LONG - SHORT) * LONG))
    _, (_, *apart) = record_segments(plan, engine, kinds, [LONG] * 4, settling=False)
    step = (statistics.median(apart) - end) / LONG
    return step + end / plan.config.capture.segment_steps, window_seconds


def evaluation_seconds(plan: StepPlan, engine: Engine) -> float:
    """Return the seconds of evaluating one datum."""
    batch = plan.config.training.batch
    token_NT, target_NT = to_device(plan.corpus.train, engine.device)
    token_NT, target_NT = token_NT[:EVALUATED], target_NT[:EVALUATED]
    start = time.perf_counter()
    evaluate(engine.model, token_NT, target_NT, batch=batch)
    return (time.perf_counter() - start) / len(token_NT)


def factor_row_bytes(plan: StepPlan, engine: Engine) -> int:
    """Return the bytes of one datum's factors before compression, as observed in one step."""
    observed = observer_of(plan, engine, only("factors")).step(next(repeated_steps(plan, engine)))
    assert observed.factors
    return observed.factors[0].row_bytes


def peak_bytes() -> int:
    """Return the peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux reports KiB, macOS reports bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak_bytes(device: torch.device) -> int:
    """Return the peak memory of tensors on a CUDA device; 0 for the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
