"""Take the steps of a segment again, from the checkpoint before it, and add what they tell.

Everything random follows from (seed, epoch, step, slot), so a step that is taken again is the same
step. On the same kind of machine, with as many threads, its bits are the same too, and so are the
bytes of every record; else the segment must end close to its checkpoint, or nothing is added.

Segments are independent of each other but for tallies, which are sums over a window of training, in
the order of its steps: those of a window that began earlier begin with its first step.
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
from capture.config.settings import Config, require_ours
from capture.device import deterministic
from capture.engine.build import build_engine, restore
from capture.engine.observer import Observer
from capture.engine.step_plan import Plan
from capture.errors import ReplayError, RunError
from capture.format import checkpoint
from capture.format.corpus_tables import read_corpus
from capture.format.factor_layout import FactorLayout
from capture.format.factor_tables import Rows
from capture.format.markers import START, File, Marker, read_marker, require_start, segment_key
from capture.format.replay_markers import replay_key, write_replay
from capture.format.run_yaml import KEY, read_run
from capture.store.store import Store
from capture.training.segments import OpenSegment, put_outliers, put_part, put_tallies

TOLERANCE = 1e-4
"""How far a replayed segment may end from its checkpoint, relatively, on another machine."""
MOST_THREADS = 1024
Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Past:
    """A run as far as replaying needs it; small enough to be sent to where a segment is."""

    store: Store
    plan: Plan
    threads: int
    """Of torch, as the run was captured: the bits depend on it."""
    device: str
    """What the run was captured on, in words."""


@dataclass(frozen=True)
class Replayed:
    """What replaying a segment came to."""

    segment: int
    added: tuple[RecordKind, ...]
    """Empty where all that was asked for was there."""
    num_bytes: int = 0
    difference: float = 0.0
    """‖θ − checkpoint‖ / ‖checkpoint‖ at its end; 0: the same to the last bit."""
    audit_error: float = 0.0
    """The largest of its steps."""


def read_past(store: Store, precision: Precision | None = None) -> Past:
    """The run at a store; raises what a damaged one raises.

    ``precision``: of factors, None for the run's own.
    """
    start = require_start(store)
    values = read_run(store, start)
    config = make_config(values["config"], where=f"{store.uri}/{KEY}")
    require_ours(config, "its steps cannot be taken again", "Record factors as it trains")
    threads = values.get("threads")
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        threads = torch.get_num_threads()
    corpus = read_corpus(store, start, window=config.corpus.window)
    shape = {"vocabulary": len(corpus.vocabulary.tokens), "window": config.corpus.window}
    checkpoint.require_room(store, config.model, **shape)
    return Past(store, Plan(to_replay(config, precision), corpus), threads, str(values["device"]))


def to_replay(config: Config, precision: Precision | None) -> Config:
    """The run's configuration, but for what it recorded at first: that is asked for now."""
    capture = config.capture
    tally = replace(capture.tally, enabled=True)
    factors = replace(capture.factors, precision=precision or capture.factors.precision)
    return replace(config, capture=replace(capture, tally=tally, factors=factors))


# --- a segment ------------------------------------------------------------------------------------


def replay_segment(past: Past, segment: int, kinds: Collection[RecordKind]) -> Replayed:
    """Add the records of these kinds that a segment lacks.

    Raises ``ReplayError`` if it does not end where it ended, ``AuditError`` where shifts do not add
    up; nothing is added then.
    """
    own = read_marker(past.store, segment_key(segment))
    wanted = lacking(past, segment, own, kinds)
    if not wanted:
        return Replayed(segment, ())
    with as_captured(past):
        observer = observer_at(past, first_needed(past.plan, own, wanted), wanted)
        run_up(past.plan, observer, own, wanted)
        done = record(past, observer, segment, own)
        wanted_weights = checkpoint.read_checkpoint(past.store, own.end_step, own)
        difference = compare(past, observer.engine.model, wanted_weights, own.end_step)
    files = files_of(past, observer, segment, done)
    for kind in wanted:
        write_replay(past.store, segment, kind, files[kind], own)
    num_bytes = sum(file.num_bytes for kind in wanted for file in files[kind])
    errors = [row["audit_error"] for row in done.steps]
    audit_error = max(error for error in errors if isinstance(error, float))
    return Replayed(segment, wanted, num_bytes, difference, audit_error)


def lacking(
    past: Past, segment: int, own: Marker, kinds: Collection[RecordKind]
) -> tuple[RecordKind, ...]:
    """What is asked for and neither there nor impossible (tallies where no window ends)."""
    return tuple(
        kind
        for kind in KINDS
        if kind in kinds
        and not own.files_of(kind)
        and not past.store.exists(replay_key(segment, kind))
        and (kind != "tallies" or windows_ended(past.plan, own))
    )


def windows_ended(plan: Plan, own: Marker) -> bool:
    """Whether a window of training ends within a segment."""
    size = plan.window_steps
    return own.end_step == plan.num_steps or own.first_step // size < own.end_step // size


def first_needed(plan: Plan, own: Marker, wanted: Collection[RecordKind]) -> int:
    """The step to begin with: the segment's first, or that of the window which ends in it."""
    opened = own.first_step - own.first_step % plan.window_steps
    ends = min(opened + plan.window_steps, plan.num_steps) <= own.end_step
    return opened if "tallies" in wanted and ends else own.first_step


def observer_at(past: Past, step: int, kinds: Collection[RecordKind]) -> Observer:
    """An observer with the weights of the last checkpoint at or before a step."""
    plan = past.plan
    number = step // plan.config.capture.segment_steps
    engine = build_engine(plan, kinds)
    marker = read_marker(past.store, segment_key(number - 1) if number else START)
    restore(engine, past.store, marker)
    return Observer(plan, engine, frozenset(kinds))


def run_up(plan: Plan, observer: Observer, own: Marker, wanted: Collection[RecordKind]) -> None:
    """The steps before the segment, of which tallies alone are kept."""
    needed = first_needed(plan, own, wanted)
    begin = needed - needed % plan.config.capture.segment_steps
    for turn in itertools.islice(plan.turns(begin), own.first_step - begin):
        if observer.tally and turn.step == needed:
            observer.tally.clear()
        observer.update(turn)


def record(past: Past, observer: Observer, segment: int, own: Marker) -> OpenSegment:
    """The segment's steps; their factors are stored as they come."""
    done = OpenSegment(own.first_step)
    num_steps = own.end_step - own.first_step
    for turn in itertools.islice(past.plan.turns(own.first_step), num_steps):
        parts = done.add_step(observer.step(turn), turn.datum_N)
        done.factors += [put_part(past.store, segment, part) for part in parts]
        if observer.tally and turn.ends_window:
            done.tallies.append((turn.window, observer.tally.drain()))
    done.factors += [put_part(past.store, segment, part) for part in done.parts.close()]
    return done


def compare(past: Past, model: nn.Module, wanted: Mapping[str, Tensor], step: int) -> float:
    """How far the weights are from the checkpoint after ``step`` steps, which is ``wanted``,
    relatively; raises ``ReplayError`` if too far."""
    found = checkpoint.snapshot(model)
    if all(torch.equal(found[name], wanted[name]) for name in found):
        return 0.0
    missed = sum(float((found[n].double() - wanted[n]).square().sum()) for n in found)
    size = sum(float(wanted[n].double().square().sum()) for n in found)
    difference = (missed / size) ** 0.5 if size else float("inf")
    if not difference <= TOLERANCE:
        where = f"{past.store.uri}/{checkpoint.key_of(step)}"
        problem = f"replaying ended {difference:.1e} of it away, allowed: {TOLERANCE:.0e}"
        remedy = f"Replay where it was captured: {past.device}, {past.threads} threads"
        raise ReplayError(where, problem, remedy)
    return difference


def files_of(
    past: Past, observer: Observer, segment: int, done: OpenSegment
) -> dict[RecordKind, list[File]]:
    """Store what is not stored yet; the files by kind."""
    return {
        "outliers": put_outliers(past.store, observer.layout, segment, done),
        "tallies": put_tallies(past.store, done.tallies),
        "factors": done.factors,
    }


@contextmanager
def as_captured(past: Past) -> Iterator[None]:
    """Within: torch computes as it did when the run was captured."""
    before = torch.get_num_threads()
    torch.set_num_threads(past.threads)
    try:
        with deterministic():
            yield
    finally:
        torch.set_num_threads(before)


# --- a step ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Again:
    """What a step that was taken again tells of every shift in it."""

    layout: FactorLayout
    rows: Rows
    preconditioner: Mapping[str, np.ndarray] | None
    """By unit, what an entry's shift is multiplied by besides the scale; None: 1."""


def step_again(past: Past, step: int) -> Again:
    """One step, kept nowhere; raises ``RunError`` for one that is not committed."""
    number = step // past.plan.config.capture.segment_steps
    if not past.store.exists(segment_key(number)):
        raise RunError(past.store.uri, f"has no committed segment with step {step}")
    with as_captured(past):
        observer = observer_at(past, step, ["factors"])
        begin = number * past.plan.config.capture.segment_steps
        for turn in itertools.islice(past.plan.turns(begin), step - begin):
            observer.update(turn)
        found = observer.step(next(past.plan.turns(step)))
    assert found.factors
    preconditioner = None
    if found.preconditioner:
        preconditioner = {name: by.cpu().numpy() for name, by in found.preconditioner.items()}
    return Again(*found.factors, preconditioner)
