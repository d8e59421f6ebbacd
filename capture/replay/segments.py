"""Replay the steps of a segment from the checkpoint before it, and add the records that it lacks.

All random numbers follow from (seed, epoch, step, slot), so a replayed step is the same step. On
the same kind of machine with the same number of threads it has the same bits, and every record the
same bytes. On another machine the segment must end close to its checkpoint, or nothing is added.

Segments are replayed independently. Tallies are the exception: they are sums over a window, in the
order of its steps, so replay starts at the first step of the window that ends in the segment.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from capture.config.reading import make_config
from capture.config.records import KINDS, RecordKind
from capture.config.settings import Config, require_capture_loop
from capture.device import deterministic
from capture.engine.build import build_engine, restore
from capture.engine.observer import Observer
from capture.engine.step_plan import StepPlan
from capture.errors import ReplayError, RunError
from capture.format import checkpoint
from capture.format.chain import require_start
from capture.format.corpus_tables import read_corpus
from capture.format.factor_layout import FactorLayout
from capture.format.factor_parts import require_few_tables
from capture.format.factor_tables import FactorRows
from capture.format.markers import START, File, Marker, read_marker, segment_key
from capture.format.replay_markers import replay_key, write_replay
from capture.format.run_yaml import KEY, read_run
from capture.store import Store
from capture.training.segments import OpenSegment, put_outliers, put_part, put_tallies

TOLERANCE = 1e-4
"""Largest accepted ‖θ − checkpoint‖ / ‖checkpoint‖ at the end of a replayed segment."""
MAX_THREADS = 1024
Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class ReplayableRun:
    """What replay needs of a run; small enough to be sent to another process."""

    store: Store
    plan: StepPlan
    threads: int
    """Threads that torch had during capture. The order of its sums depends on them."""
    device: str
    """Description of the device that the run was captured on."""


@dataclass(frozen=True)
class ReplayResult:
    """Result of replaying a segment."""

    segment: int
    added: tuple[RecordKind, ...]
    """Records that were added; empty if the segment had all that were asked for."""
    num_bytes: int = 0
    difference: float = 0.0
    """‖θ − checkpoint‖ / ‖checkpoint‖ at the end of the segment; 0: bit-identical."""
    audit_error: float = 0.0
    """Largest audit error of its steps."""


def read_replayable_run(store: Store, precision: Precision | None = None) -> ReplayableRun:
    """Read what replay needs of the run at a store.

    ``precision``: of the factors to record; None: as in the run's configuration. Raises
    ``ConfigError`` for a run of a custom training loop, and ``ShardError`` for a damaged run.
    """
    start = require_start(store)
    values = read_run(store, start)
    config = make_config(values["config"], where=f"{store.uri}/{KEY}")
    require_capture_loop(config, "its steps cannot be replayed", "Record factors during training")
    threads = values.get("threads")
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        threads = torch.get_num_threads()
    own = config.corpus
    corpus = read_corpus(store, start, window=own.window, scored=own.scored)
    shape = {"vocabulary": len(corpus.vocabulary.tokens), "window": own.window}
    checkpoint.require_model_fits(store, config.model, **shape)
    return ReplayableRun(
        store, StepPlan(replay_config(config, precision), corpus), threads, str(values["device"])
    )


def replay_config(config: Config, precision: Precision | None) -> Config:
    """Return the run's configuration with tallies, all segments and the given factor precision.

    The kinds to record are given to each replay, so those of the configuration do not matter.
    """
    capture = config.capture.at_every_step()
    tally = replace(capture.tally, enabled=True)
    factors = replace(capture.factors, precision=precision or capture.factors.precision)
    return replace(config, capture=replace(capture, tally=tally, factors=factors))


# --- a segment ------------------------------------------------------------------------------------


def replay_segment(run: ReplayableRun, segment: int, kinds: Collection[RecordKind]) -> ReplayResult:
    """Replay a segment and store those of the given records that it lacks.

    Raises ``ReplayError`` if the weights at its end differ too much from its checkpoint, and
    ``AuditError`` if the shifts of a step do not add up. Nothing is added then.
    """
    marker = read_marker(run.store, segment_key(segment))
    wanted = missing_kinds(run, segment, marker, kinds)
    if not wanted:
        return ReplayResult(segment, ())
    with as_captured(run):
        observer = observer_at(run, first_step_needed(run.plan, marker, wanted), wanted)
        advance_to_segment(run.plan, observer, marker, wanted)
        done = record_segment(run, observer, segment, marker)
        wanted_weights = checkpoint.read_checkpoint(run.store, marker.end_step, marker)
        difference = checkpoint_difference(
            run, observer.engine.model, wanted_weights, marker.end_step
        )
    files = put_records(run, observer, segment, done)
    for kind in wanted:
        write_replay(run.store, segment, kind, files[kind], marker)
    num_bytes = sum(file.num_bytes for kind in wanted for file in files[kind])
    errors = [row["audit_error"] for row in done.steps]
    audit_error = max(error for error in errors if isinstance(error, float))
    return ReplayResult(segment, wanted, num_bytes, difference, audit_error)


def missing_kinds(
    run: ReplayableRun, segment: int, marker: Marker, kinds: Collection[RecordKind]
) -> tuple[RecordKind, ...]:
    """Return the kinds that are asked for and not stored; tallies only if a window ends here."""
    return tuple(
        kind
        for kind in KINDS
        if kind in kinds
        and not marker.files_of(kind)
        and not run.store.exists(replay_key(segment, kind))
        and (kind != "tallies" or ends_a_window(run.plan, marker))
    )


def ends_a_window(plan: StepPlan, marker: Marker) -> bool:
    """Return whether a tally window ends within the segment of a marker."""
    size = plan.window_steps
    return marker.end_step == plan.num_steps or marker.first_step // size < marker.end_step // size


def first_step_needed(plan: StepPlan, marker: Marker, wanted: Collection[RecordKind]) -> int:
    """Return the first step to observe: of the segment, or of the first window that ends in it."""
    opened = marker.first_step - marker.first_step % plan.window_steps
    ends = min(opened + plan.window_steps, plan.num_steps) <= marker.end_step
    return opened if "tallies" in wanted and ends else marker.first_step


def observer_at(run: ReplayableRun, step: int, kinds: Collection[RecordKind]) -> Observer:
    """Return an observer with the weights of the last checkpoint at or before a step."""
    plan = run.plan
    number = step // plan.config.capture.segment_steps
    engine = build_engine(plan, kinds)
    marker = read_marker(run.store, segment_key(number - 1) if number else START)
    restore(engine, run.store, marker)
    return Observer(plan, engine, frozenset(kinds))


def advance_to_segment(
    plan: StepPlan, observer: Observer, marker: Marker, wanted: Collection[RecordKind]
) -> None:
    """Take the steps from the checkpoint to the segment; only tallies are kept of them."""
    needed = first_step_needed(plan, marker, wanted)
    begin = needed - needed % plan.config.capture.segment_steps
    for planned in itertools.islice(plan.planned_steps(begin), marker.first_step - begin):
        if observer.tally and planned.step == needed:
            observer.tally.clear()
        observer.update(planned)


def record_segment(
    run: ReplayableRun, observer: Observer, segment: int, marker: Marker
) -> OpenSegment:
    """Take and observe the segment's steps; their factors are stored on the way."""
    done = OpenSegment(marker.first_step)
    num_steps = marker.end_step - marker.first_step
    for planned in itertools.islice(run.plan.planned_steps(marker.first_step), num_steps):
        observed = observer.step(planned)
        if observed.factors and not done.steps:
            layout, rows = observed.factors
            require_few_tables(layout, num_steps, len(rows.datum_N), where=run.store.uri)
        parts = done.add_step(observed, planned.datum_N)
        done.factors += [put_part(run.store, segment, part) for part in parts]
        if observer.tally and planned.ends_window:
            done.tallies.append((planned.window, observer.tally.drain()))
    done.factors += [put_part(run.store, segment, part) for part in done.parts.close()]
    return done


def checkpoint_difference(
    run: ReplayableRun, model: nn.Module, wanted: Mapping[str, Tensor], step: int
) -> float:
    """Return ‖θ − checkpoint‖ / ‖checkpoint‖; raises ``ReplayError`` above ``TOLERANCE``.

    ``wanted``: the tensors of the checkpoint after ``step`` steps.
    """
    found = checkpoint.snapshot(model)
    if all(torch.equal(found[name], wanted[name]) for name in found):
        return 0.0
    missed = sum(float((found[n].double() - wanted[n]).square().sum()) for n in found)
    size = sum(float(wanted[n].double().square().sum()) for n in found)
    difference = (missed / size) ** 0.5 if size else float("inf")
    if not difference <= TOLERANCE:
        where = f"{run.store.uri}/{checkpoint.key_of(step)}"
        problem = f"replayed weights differ by {difference:.1e} of it, allowed: {TOLERANCE:.0e}"
        remedy = f"Replay where it was captured: {run.device}, {run.threads} threads"
        raise ReplayError(where, problem, remedy)
    return difference


def put_records(
    run: ReplayableRun, observer: Observer, segment: int, done: OpenSegment
) -> dict[RecordKind, list[File]]:
    """Store outliers and tallies; returns the files by kind, with those of factors."""
    return {
        "outliers": put_outliers(run.store, observer.layout, segment, done),
        "tallies": put_tallies(run.store, done.tallies),
        "factors": done.factors,
    }


@contextmanager
def as_captured(run: ReplayableRun) -> Iterator[None]:
    """Make torch compute as during capture: same number of threads, deterministic kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(run.threads)
    try:
        with deterministic():
            yield
    finally:
        torch.set_num_threads(before)


# --- a step ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ReplayedStep:
    """Factors of a replayed step, from which each of its shifts follows."""

    layout: FactorLayout
    rows: FactorRows
    preconditioner: Mapping[str, np.ndarray] | None
    """Factor of each entry's shift besides the scale, by unit; None: 1 everywhere."""


def replay_step(run: ReplayableRun, step: int) -> ReplayedStep:
    """Replay one step and store nothing; raises ``RunError`` if the step is not committed."""
    number = step // run.plan.config.capture.segment_steps
    if not run.store.exists(segment_key(number)):
        raise RunError(run.store.uri, f"has no committed segment with step {step}")
    with as_captured(run):
        observer = observer_at(run, step, ["factors"])
        begin = number * run.plan.config.capture.segment_steps
        for planned in itertools.islice(run.plan.planned_steps(begin), step - begin):
            observer.update(planned)
        found = observer.step(next(run.plan.planned_steps(step)))
    assert found.factors
    preconditioner = None
    if found.preconditioner:
        preconditioner = {name: by.cpu().numpy() for name, by in found.preconditioner.items()}
    return ReplayedStep(*found.factors, preconditioner)
