"""The training loop of ``ontogeny capture``: train, audit and record, from the start or resumed.

All random numbers follow from (seed, epoch, step, slot), so a run that was interrupted and resumed
stores the same bytes as one that was not.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from capture.config.settings import Config, require_capture_loop
from capture.corpus.datums import load_corpus
from capture.device import deterministic, packing_threads
from capture.engine.build import build_engine, complete_config, restore
from capture.engine.engine import Engine
from capture.engine.evaluation import Evaluation, evaluate_splits
from capture.engine.observer import Observer
from capture.engine.step_plan import PlannedStep, StepPlan
from capture.errors import ConfigError
from capture.format.chain import read_segments, require_start
from capture.format.markers import Marker
from capture.format.run_yaml import read_run
from capture.process_group import (
    SINGLE_PROCESS,
    Group,
    heartbeat,
    require_same,
    wait_for_first,
)
from capture.store import Store, lease
from capture.training.open_window import OpenWindow, is_stored, load_window, remove_window
from capture.training.recorder import Recorder
from capture.training.run_start import begin_run, begins_new_run, check_corpus, clear_run
from capture.training.write_queue import WriteDelay


@dataclass(frozen=True)
class Progress:
    """Reported after every step."""

    steps_done: int
    num_steps: int
    epoch: int
    epochs: int
    loss: float
    rows: int
    """Outlier rows recorded so far."""
    stored_bytes: int
    """Size of all committed segments."""


@dataclass(frozen=True)
class WindowReplay:
    """Reported while a resumed capture replays the steps of an open tally window."""

    steps_done: int
    """Number of steps replayed so far."""
    num_steps: int
    """Number of steps to replay."""


@dataclass(frozen=True)
class OtherThreads:
    """Reported if a resumed capture uses another number of threads than the run was started with.

    Threads change the order in which floats are added, so the weights depart from those of an
    uninterrupted run.
    """

    started_with: int
    now: int


Event = Progress | Evaluation | WindowReplay | WriteDelay | OtherThreads | lease.TakenOver
Report = Callable[[Event], None]


def capture_run(
    config: Config,
    report: Report,
    *,
    resume: bool = False,
    overwrite: bool = False,
    group: Group = SINGLE_PROCESS,
    owner: str = "",
) -> None:
    """Train a model and record the run at ``config.run.uri``.

    Args:
        config: the whole configuration of the run.
        report: called after every step with ``Progress``, and with the other kinds of ``Event``
            when they occur.
        resume: continue after the last committed segment of a run that exists.
        overwrite: replace a run that exists. It is removed only after configuration, corpus and
            model have been checked.
        group: the workers that train together. The first one starts the run and writes its
            markers; the others wait until it has started.
        owner: the name under which the workers hold the run's lease; empty for one process.

    Raises:
        RunError: if the run exists and neither ``resume`` nor ``overwrite`` is set, if it has
            another configuration, or if it is being captured now.
        AuditError: if the shifts of a step do not add up to the change of the weights.
        ConfigError, UnitError, StoreError: if configuration, model or store are at fault.
    """
    require_capture_loop(config, "ontogeny capture trains by itself", "Set run.loop=capture")
    if config.engine == "deepspeed" and group is SINGLE_PROCESS:
        raise ConfigError("engine", "got deepspeed, which takes the workers of a process group")
    config = complete_config(config)
    store = Store(config.run.uri, config.store)
    if group.rank == 0:
        lease.stale_lease(store, owner)
        begins_new_run(store, config, resume=resume, overwrite=overwrite)
    plan = StepPlan(config, load_corpus(config.corpus, batch=config.training.batch))
    with deterministic():
        engine = build_engine(plan, config.capture.kinds, group, beginning=True)
        if group.rank:
            train_as_follower(store, plan, engine, owner)
            return
        with lease.hold_lease(store, report, owner) as holding:
            with heartbeat(group) as alive:
                if begins_new_run(store, config, resume=resume, overwrite=overwrite):
                    clear_run(store, alive)
                    begin_run(store, plan, engine, holding.require)
                else:
                    check_corpus(store, plan.corpus)
                    report_other_threads(store, report)
            train(store, plan, engine, holding.require, report)


def report_other_threads(store: Store, report: Report) -> None:
    """Report ``OtherThreads`` if torch's threads are not as many as at the start of the run."""
    started_with = read_run(store, require_start(store)).get("threads")
    now = torch.get_num_threads()
    if isinstance(started_with, int) and started_with != now:
        report(OtherThreads(started_with, now))


def train_as_follower(store: Store, plan: StepPlan, engine: Engine, owner: str) -> None:
    """Train and record as a worker that is not the first, once the first has started the run."""
    wait_for_first(engine.group)
    check_corpus(store, plan.corpus)
    train(store, plan, engine, partial(lease.require, store, owner), lambda event: None)


def train(
    store: Store, plan: StepPlan, engine: Engine, may_commit: Callable[[], None], report: Report
) -> None:
    """Take and record all steps after the last committed segment."""
    done = read_segments(store)
    first_step = done[-1].end_step if done else 0
    observer = Observer(plan, engine, plan.config.capture.kinds)
    group = engine.group
    if done:
        replay_window(observer, store, [require_start(store), *done], report)
    # Workers may have drawn different initial weights; all continue with those of the first.
    if done or group.size > 1:
        restore(engine, store, done[-1] if done else require_start(store))
    recorder = Recorder(
        store,
        observer.layout,
        done,
        group=group,
        packing_threads=packing_threads(engine.device),
        segment_steps=plan.config.capture.segment_steps,
        may_commit=may_commit,
        report=report,
    )
    with recorder:
        for planned in plan.planned_steps(first_step):
            loss = record_step(observer, planned, recorder)
            for evaluation in evaluate_held_out(plan, engine, planned) if planned.evaluates else ():
                recorder.add_evaluation(vars(evaluation))
                report(evaluation)
            if planned.ends_segment:
                require_same(group, list(engine.model.parameters()), f"step {planned.step}")
                recorder.commit(engine.snapshot(), open_window(observer, planned, recorder.segment))
            if planned.step + 1 == plan.num_steps:
                recorder.flush()
            recorder.check()
            report(progress(plan, planned, loss, recorder))


def evaluate_held_out(plan: StepPlan, engine: Engine, planned: PlannedStep) -> list[Evaluation]:
    """Evaluate the held-out splits; the result is empty on all but the first worker.

    The others wait for the first one, or take part if the engine partitions the model.
    """
    group = engine.group
    if engine.partitioned:
        found = evaluate_splits(plan, engine, planned)
        return [] if group.rank else found
    if group.rank:
        wait_for_first(group)
        return []
    with heartbeat(group) as alive:
        return evaluate_splits(plan, engine, planned, alive)


def replay_window(observer: Observer, store: Store, markers: list[Marker], report: Report) -> None:
    """Replay the steps of the open tally window from a checkpoint, to restore its tallies.

    Tallies are stored only when their window ends, because their sums are large. After an
    interruption, the sums at the end of a segment are loaded (``capture.training.open_window``) and
    the steps after it are taken again. The result is the same as without an interruption.
    ``markers``: of the start and of all committed segments, in order.
    """
    plan, done, tally = observer.plan, markers[-1].end_step, observer.tally
    opened = done - done % plan.window_steps
    if not tally:
        return
    group = observer.engine.group
    if opened == done or done == plan.num_steps:
        if group.rank == 0:
            remove_window(store)  # left by an interruption right after the window ended
        return
    marker = load_window(store, tally, group, markers, opened)
    if marker is None:
        tally.clear()
        marker = [marker for marker in markers if marker.end_step <= opened][-1]
    first_step = marker.end_step
    if first_step < done:
        restore(observer.engine, store, marker)
    for planned in itertools.islice(plan.planned_steps(first_step), done - first_step):
        if planned.step == opened:
            tally.clear()
        observer.update(planned)
        report(WindowReplay(planned.step + 1 - first_step, done - first_step))


def open_window(observer: Observer, planned: PlannedStep, segment: int) -> OpenWindow | None:
    """Return the sums of the tally window that stays open after a segment's last step, if any."""
    done, tally = planned.step + 1, observer.tally
    opened = done - done % observer.plan.window_steps
    if not tally or planned.ends_window or not is_stored(tally, segment):
        return None
    return OpenWindow(opened, done, tally.state())


def record_step(observer: Observer, planned: PlannedStep, recorder: Recorder) -> object:
    """Take a step and record it; returns its loss."""
    observed = observer.step(planned)
    recorder.add_step(observed, planned.datum_N)
    if observer.tally and planned.ends_window:
        sums = observer.tally.drain()
        if observer.engine.group.rank == 0:
            recorder.add_tallies(planned.window, sums)
    return observed.row["loss"]


def progress(plan: StepPlan, planned: PlannedStep, loss: object, recorder: Recorder) -> Progress:
    assert isinstance(loss, float)
    return Progress(
        planned.step + 1,
        plan.num_steps,
        planned.epoch,
        plan.config.training.epochs,
        loss,
        recorder.rows,
        recorder.stored_bytes,
    )
