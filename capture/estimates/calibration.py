"""A few real steps of a run that is not made: what each kind of record takes of time and bytes.

The steps are the run's own first ones, with its model on its text, recorded into a folder that is
removed; nothing goes to the run's store. Steps with different records alternate, so that a machine
that is busy for a while slows all of them alike, and medians are kept. How recording as it is
configured and training get in each other's way is seen by doing both, segment after segment.
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
from capture.device import deterministic, packers
from capture.engine.build import build_engine
from capture.engine.engine import Engine
from capture.engine.evaluation import evaluate
from capture.engine.observer import Observer, on_device
from capture.engine.step_plan import Plan, Turn
from capture.format import checkpoint
from capture.format.markers import START, File, Marker, read_segments, write_marker
from capture.gradients.layout import Layout
from capture.store.store import Store
from capture.training.recorder import Recorder

Kinds = frozenset[RecordKind]
PLAIN: Kinds = frozenset()
EVERYTHING: Kinds = frozenset(KINDS)
EVALUATED = 100
"""Held-out datums whose evaluation is timed."""
SHORT, LONG = 3, 6
"""Steps of the two segments whose files are measured."""


@dataclass(frozen=True)
class Calibration:
    """What was measured."""

    num_steps: int
    """Timed with each set of records."""
    step_seconds: dict[Kinds, float]
    """A step in which these records are made, their writing not included; none: plain training."""
    recorded_seconds: float
    """A step of the configured records, packed and stored beside the next steps, but for what
    tallies add at the end of a window; its share of a checkpoint included."""
    evaluation_seconds: float
    """A held-out datum."""
    window_seconds: float
    """Of storing tallies of ``LONG`` steps, beside nothing else."""
    segments: tuple[tuple[File, ...], tuple[File, ...]]
    """The files of segments of ``SHORT`` and ``LONG`` steps."""
    start_bytes: int
    """Of the checkpoint before the first step, when an optimizer remembers nothing yet."""
    layout: Layout
    """The captured units."""
    factor_row_bytes: int
    """Of one datum's factors before they are packed."""
    packers: int
    """Tables of factors that are packed at once while training waits; 0: one beside training."""
    peak_bytes: int
    """The most memory that this process has held so far."""
    device_peak_bytes: int
    """The same of a CUDA device's memory, in tensors; 0 without one."""


def calibrate(plan: Plan, budget_seconds: float) -> Calibration:
    """Take the first steps of a run over and over for about this long, and record some.

    Raises what the run itself would raise before its first step.
    """
    with deterministic():
        engine = build_engine(plan, KINDS)
        start_bytes = len(checkpoint.encode(engine.snapshot()))
        (short, long), _ = recorded(plan, engine, EVERYTHING, (SHORT, LONG))
        recorded_seconds, window_seconds = recording(plan, engine)
        evaluating_seconds = evaluation_seconds(plan, engine)
        peaks = peak_bytes(), device_peak_bytes(engine.device)  # of one observer, as in a run
        sets = dict.fromkeys([PLAIN, plan.config.capture.kinds, *map(one, KINDS), EVERYTHING])
        observers = {kinds: observer_of(plan, engine, kinds) for kinds in sets}
        seconds = timed(again(plan, engine), observers, budget_seconds)
        return Calibration(
            min(map(len, seconds.values())),
            {kinds: statistics.median(own) for kinds, own in seconds.items()},
            recorded_seconds,
            evaluating_seconds,
            window_seconds,
            (short, long),
            start_bytes,
            engine.layout,
            factor_row_bytes(plan, engine),
            packers(engine.device),
            *peaks,
        )


def one(kind: RecordKind) -> Kinds:
    return frozenset({kind})


def observer_of(plan: Plan, engine: Engine, kinds: Kinds) -> Observer:
    """An observer of the same model; one that sees nothing where nothing is recorded.

    All share one optimizer, which counts the steps of all.
    """
    if kinds:
        return Observer(plan, engine, kinds)
    alike = {"seed": engine.seed, "num_steps": engine.num_steps, "last_only": False}
    plain = Engine(engine.model, plan.config.training, units={}, **alike)
    plain.optimizer = engine.optimizer
    return Observer(plan, plain, kinds)


def again(plan: Plan, engine: Engine) -> Iterator[Turn]:
    """The run's first steps, over and over, numbered on from 0; the optimizer, whose own count must
    be the same, forgets what it did before."""
    engine.optimizer.state.clear()
    turns = itertools.cycle(list(itertools.islice(plan.turns(0), 2 * LONG)))
    return (replace(turn, step=step) for step, turn in enumerate(turns))


def timed(
    turns: Iterator[Turn], observers: dict[Kinds, Observer], budget_seconds: float
) -> dict[Kinds, list[float]]:
    """Seconds of steps by what is recorded of them; three of each at least."""
    seconds: dict[Kinds, list[float]] = {kinds: [] for kinds in observers}
    began = time.monotonic()
    for observer in observers.values():
        observer.step(next(turns))
    while len(seconds[PLAIN]) < 3 or time.monotonic() - began < budget_seconds:
        for kinds, observer in observers.items():
            turn, start = next(turns), time.perf_counter()
            observer.step(turn)
            seconds[kinds].append(time.perf_counter() - start)
    return seconds


def recorded(
    plan: Plan, engine: Engine, kinds: Kinds, lengths: Sequence[int], *, settling: bool = True
) -> tuple[list[tuple[File, ...]], list[float]]:
    """Files of segments of these lengths, stored somewhere and forgotten; seconds of each.

    With ``settling`` those of its end: from its last step until it is stored. Else all from the
    end of the segment before to its own, in which that one is stored.
    """
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        write_marker(store, START, Marker(0, 0, ()))
        observer, turns = observer_of(plan, engine, kinds), again(plan, engine)
        with Recorder(store, observer.layout, [], packers=packers(engine.device)) as recorder:
            start = time.perf_counter()
            for num_steps in lengths:
                for turn in itertools.islice(turns, num_steps):
                    recorder.add_step(observer.step(turn), turn.datum_N)
                if observer.tally and settling:
                    recorder.add_tallies(0, observer.tally.drain())
                if settling:
                    start = time.perf_counter()
                recorder.commit(engine.snapshot())
                if settling:
                    recorder.settle()
                seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
        return [marker.files for marker in read_segments(store)], seconds


def recording(plan: Plan, engine: Engine) -> tuple[float, float]:
    """Seconds of a step as it is configured, and of storing a window's tallies.

    A segment's end, its checkpoint above all, weighs less in the run's longer segments: what does
    not grow with the steps is found from ends of two lengths.
    """
    kinds = plan.config.capture.kinds
    others: Kinds = kinds - {"tallies"}
    _, (_, short, long) = recorded(plan, engine, others, (1, SHORT, LONG))
    window_seconds = 0.0
    if others != kinds:
        _, (_, together) = recorded(plan, engine, kinds, (1, LONG))
        window_seconds = max(0.0, together - long)
    end = min(long, max(0.0, long - (long - short) / (LONG - SHORT) * LONG))
    _, (_, *apart) = recorded(plan, engine, kinds, [LONG] * 4, settling=False)
    step = (statistics.median(apart) - end) / LONG
    return step + end / plan.config.capture.segment_steps, window_seconds


def evaluation_seconds(plan: Plan, engine: Engine) -> float:
    """How long a datum's evaluation takes."""
    batch = plan.config.training.batch
    token_NT, target_NT = on_device(plan.corpus.train, engine.device)
    token_NT, target_NT = token_NT[:EVALUATED], target_NT[:EVALUATED]
    start = time.perf_counter()
    evaluate(engine.model, token_NT, target_NT, batch=batch)
    return (time.perf_counter() - start) / len(token_NT)


def factor_row_bytes(plan: Plan, engine: Engine) -> int:
    """How much a datum's factors are, seen in a step."""
    observed = observer_of(plan, engine, one("factors")).step(next(again(plan, engine)))
    assert observed.factors
    return observed.factors[0].row_bytes


def peak_bytes() -> int:
    """The most memory that this process has held; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak_bytes(device: torch.device) -> int:
    """The most memory of a CUDA device that tensors have taken; 0 for the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
