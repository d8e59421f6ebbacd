"""The loop: train, audit, record; afresh, or on from the last committed segment.

Everything random follows from (seed, epoch, step, slot), so a run that was interrupted and resumed
leaves the same bytes as one that was not.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from capture.config.settings import Config, require_ours
from capture.corpus.datums import load_corpus
from capture.device import deterministic, packers
from capture.engine.build import build_engine, complete, restore
from capture.engine.engine import Engine
from capture.engine.evaluation import Evaluation, evaluations
from capture.engine.observer import Observer
from capture.engine.step_plan import Plan, Turn
from capture.errors import ConfigError
from capture.format.markers import Marker, read_segments, require_start
from capture.process_group import ALONE, Group, require_same
from capture.store import lease
from capture.store.store import Store
from capture.training.recorder import Recorder
from capture.training.run_start import begin, check_corpus, clear, may_begin
from capture.training.write_queue import Waiting


@dataclass(frozen=True)
class Progress:
    """Where a capture stands after a step."""

    steps_done: int
    num_steps: int
    epoch: int
    epochs: int
    loss: float
    rows: int
    """Outlier rows recorded so far."""
    stored_bytes: int
    """Of committed segments."""


@dataclass(frozen=True)
class Retracing:
    """Where a resumed capture stands that takes steps again for the open window's tallies."""

    steps_done: int
    num_steps: int


Event = Progress | Evaluation | Retracing | Waiting | lease.TakenOver
Report = Callable[[Event], None]


def capture_run(
    config: Config,
    report: Report,
    *,
    resume: bool = False,
    overwrite: bool = False,
    group: Group = ALONE,
    owner: str = "",
) -> None:
    """Train and record the run at ``config.run.uri``, or what is left of it with ``resume``.

    ``group``: the workers that do so together, and ``owner``: who holds the run's lease for them.
    The first worker begins the run and speaks for all; the others follow when it has.

    Raises ``RunError`` if a run is in the way, is being captured or has another configuration,
    ``AuditError`` when shifts do not add up to the applied change, and what corpus, configuration
    and store raise. Nothing is removed before everything else has been found in order.
    """
    require_ours(config, "ontogeny capture trains by itself", "Set run.loop=capture")
    if config.engine == "deepspeed" and group is ALONE:
        raise ConfigError("engine", "got deepspeed, which takes the workers of a process group")
    config = complete(config)
    store = Store(config.run.uri, config.store)
    if group.rank == 0:
        lease.left_behind(store, owner)
        may_begin(store, config, resume=resume, overwrite=overwrite)
    plan = Plan(config, load_corpus(config.corpus, batch=config.training.batch))
    with deterministic():
        engine = build_engine(plan, config.capture.kinds, group, beginning=True)
        if group.rank:
            follow(store, plan, engine, owner)
            return
        with lease.held(store, report, owner) as holding:
            if may_begin(store, config, resume=resume, overwrite=overwrite):
                clear(store)
                begin(store, plan, engine, holding.require)
            else:
                check_corpus(store, plan.corpus)
            group.gather("begun")
            train(store, plan, engine, holding.require, report)


def follow(store: Store, plan: Plan, engine: Engine, owner: str) -> None:
    """Train and record as a worker that is not the first, from where the first one begins."""
    engine.group.gather("ready")
    check_corpus(store, plan.corpus)
    train(store, plan, engine, partial(lease.require, store, owner), lambda event: None)


def train(
    store: Store, plan: Plan, engine: Engine, may_commit: Callable[[], None], report: Report
) -> None:
    """All steps that no marker vouches for yet."""
    done = read_segments(store)
    first_step = done[-1].end_step if done else 0
    observer = Observer(plan, engine, plan.config.capture.kinds)
    group = engine.group
    leads = group.rank == 0
    if done:
        retrace(observer, store, [require_start(store), *done], report)
    if done or group.size > 1:  # all begin with the first worker's weights, whoever drew theirs
        restore(engine, store, done[-1] if done else require_start(store))
    recorder = Recorder(
        store,
        observer.layout,
        done,
        group=group,
        packers=packers(engine.device),
        may_commit=may_commit,
        report=report,
    )
    with recorder:
        for turn in plan.turns(first_step):
            loss = record(observer, turn, recorder)
            evaluating = turn.ends_epoch and (leads or engine.scattered)
            for evaluation in evaluations(plan, engine, turn) if evaluating else ():
                if leads:
                    recorder.add_evaluation(vars(evaluation))
                report(evaluation)
            if turn.ends_segment:
                require_same(group, list(engine.model.parameters()), f"step {turn.step}")
                recorder.commit(engine.snapshot())
            if turn.step + 1 == plan.num_steps:
                recorder.settle()
            recorder.look()
            report(progress(plan, turn, loss, recorder))


def retrace(observer: Observer, store: Store, kept: list[Marker], report: Report) -> None:
    """Take the steps of the open window again, from a checkpoint; ``kept``: all markers so far.

    Its tallies are kept nowhere until it ends: steps are cheap and follow from their checkpoint,
    and a window's sums are large. So they become what they would have been.
    """
    plan, done = observer.plan, kept[-1].end_step
    opened = done - done % plan.window_steps
    if not observer.tally or opened == done or done == plan.num_steps:
        return
    marker = [marker for marker in kept if marker.end_step <= opened][-1]
    first_step = marker.end_step
    restore(observer.engine, store, marker)
    for turn in itertools.islice(plan.turns(first_step), done - first_step):
        if turn.step == opened:
            observer.tally.clear()
        observer.update(turn)
        report(Retracing(turn.step + 1 - first_step, done - first_step))


def record(observer: Observer, turn: Turn, recorder: Recorder) -> object:
    """Take a step and record it; returns its loss."""
    observed = observer.step(turn)
    recorder.add_step(observed, turn.datum_N)
    if observer.tally and turn.ends_window:
        sums = observer.tally.drain()
        if observer.engine.group.rank == 0:
            recorder.add_tallies(turn.window, sums)
    return observed.row["loss"]


def progress(plan: Plan, turn: Turn, loss: object, recorder: Recorder) -> Progress:
    assert isinstance(loss, float)
    return Progress(
        turn.step + 1,
        plan.num_steps,
        turn.epoch,
        plan.config.training.epochs,
        loss,
        recorder.rows,
        recorder.stored_bytes,
    )
