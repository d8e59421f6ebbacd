"""The loop: train, audit, record; afresh, or on from the last committed segment.

Everything random follows from (seed, epoch, step, slot), so a run that was interrupted and resumed
leaves the same bytes as one that was not.

Shapes: N datum, T position, P captured parameter.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from capture import checkpoint, lease
from capture.backlog import Waiting
from capture.buffer import ShiftBuffer
from capture.config import Config
from capture.corpus import Datums, load_corpus
from capture.engine import Engine, Step, choose_device, deterministic, evaluate
from capture.errors import AuditError, ConfigError
from capture.factors import Factors, Tape, choose_units
from capture.gradients import Layout, sum_shifts
from capture.markers import Marker, read_segments, require_start
from capture.model import fresh_model
from capture.outliers import Outliers, find_outliers
from capture.plan import Plan, Turn
from capture.recorder import Recorder
from capture.start import begin, check_corpus, clear, may_begin
from capture.store import Store
from capture.tally import Tally, tallied_units
from capture.update import relative_error, rounding_error


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
class Evaluation:
    """How a held-out split is predicted after an epoch."""

    step: int
    epoch: int
    split: str
    loss: float
    perplexity: float
    tokens: int


@dataclass(frozen=True)
class Retracing:
    """Where a resumed capture stands that takes steps again for the open window's tallies."""

    steps_done: int
    num_steps: int


Event = Progress | Evaluation | Retracing | Waiting | lease.TakenOver
Report = Callable[[Event], None]


def capture_run(
    config: Config, report: Report, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Train and record the run at ``config.run.uri``, or what is left of it with ``resume``.

    Raises ``RunError`` if a run is in the way, is being captured or has another configuration,
    ``AuditError`` when shifts do not add up to the applied change, and what corpus, configuration
    and store raise. Nothing is removed before everything else has been found in order.
    """
    store = Store(config.run.uri, config.store)
    lease.left_behind(store)
    may_begin(store, config, resume=resume, overwrite=overwrite)
    plan = Plan(config, load_corpus(config.corpus, batch=config.training.batch))
    with deterministic():
        engine = build_engine(plan)
        rehearse(engine, plan)
        with lease.held(store, report) as holding:
            if may_begin(store, config, resume=resume, overwrite=overwrite):
                clear(store)
                begin(store, plan, engine, holding.require)
            else:
                check_corpus(store, plan.corpus)
            train(store, plan, engine, holding.require, report)


def build_engine(plan: Plan) -> Engine:
    """A model with the run's initial weights, and what is captured of it."""
    config = plan.config
    model = fresh_model(
        config.model,
        vocabulary=len(plan.corpus.vocabulary.tokens),
        window=config.corpus.window,
        seed=config.run.seed,
    )
    model.to(choose_device(config.training.device))
    units = choose_units(model, config.capture.units)
    size, k = Layout.of(units).size, config.capture.outliers.k
    if k > size:
        problem = f"got {k}, must be at most {size}, the number of captured parameters"
        raise ConfigError("capture.outliers.k", problem)
    last_only = config.capture.loss_positions == "last"
    return Engine(model, config.training, units=units, last_only=last_only, seed=config.run.seed)


def rehearse(engine: Engine, plan: Plan) -> None:
    """Send one datum through the model; raises ``UnitError`` if a unit cannot be captured."""
    token_1T = torch.from_numpy(plan.corpus.train.token_NT[:1]).long().to(engine.device)
    with Tape(engine.units) as tape:
        engine.model(token_1T)
    tape.factors()


def train(
    store: Store, plan: Plan, engine: Engine, may_commit: Callable[[], None], report: Report
) -> None:
    """All steps that no marker vouches for yet."""
    done = read_segments(store)
    first_step = done[-1].end_step if done else 0
    observer = Observer(plan, engine)
    if done:
        observer.retrace(store, [require_start(store), *done], report)
        restore(engine, store, done[-1])
    recorder = Recorder(store, observer.layout, done, may_commit=may_commit, report=report)
    with recorder:
        for turn in plan.turns(first_step):
            loss = record(observer, turn, recorder)
            for evaluation in evaluations(plan, engine, turn) if turn.ends_epoch else ():
                recorder.add_evaluation(vars(evaluation))
                report(evaluation)
            if turn.ends_segment:
                recorder.commit(checkpoint.snapshot(engine.model))
            if turn.step + 1 == plan.num_steps:
                recorder.settle()
            recorder.look()
            report(progress(plan, turn, loss, recorder))


def record(observer: "Observer", turn: Turn, recorder: Recorder) -> object:
    """Take a step and record it; returns its loss."""
    row, outliers = observer.step(turn)
    recorder.add_step(row, outliers, turn.datum_N)
    if observer.tally and turn.ends_window:
        recorder.add_tallies(turn.window, observer.tally.drain())
    return row["loss"]


def restore(engine: Engine, store: Store, marker: Marker) -> None:
    """Put the weights at the end of a marker's steps into the model."""
    weights = checkpoint.read_checkpoint(store, marker.end_step, marker)
    where = f"{store.uri}/{checkpoint.key_of(marker.end_step)}"
    checkpoint.restore(engine.model, weights, where)


class Observer:
    """Takes steps with the engine and says what each did; stops where shifts do not add up."""

    def __init__(self, plan: Plan, engine: Engine) -> None:
        self.plan = plan
        self.engine = engine
        self.layout = Layout.of(engine.units)
        self.buffer = ShiftBuffer(self.layout, plan.config.training.batch, engine.device)
        self.token_NT, self.target_NT = on_device(plan.corpus.train, engine.device)
        vocabulary = len(plan.corpus.vocabulary.tokens)
        widths = tallied_units(self.layout.shapes, plan.config.capture.tally)
        self.tally = Tally(widths, vocabulary, engine.device) if widths else None

    def step(self, turn: Turn) -> tuple[dict[str, object], Outliers]:
        """One update: its row of ``steps`` and its outliers; adds to the tallies."""
        before_P = self.layout.flatten(self.engine.units)
        step, recorded = self.update(turn)
        after_P = self.layout.flatten(self.engine.units)
        outliers, total_P = find_outliers(
            self.buffer, recorded, step.scale, self.plan.config.capture.outliers
        )
        error = self.audit(turn, step, total_P, before_P, after_P)
        row = {
            "step": turn.step,
            "epoch": turn.epoch,
            "batch": turn.batch,
            "learning_rate": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "clip": step.clip,
            "loss": step.loss,
            "audit_error": error,
            "datums": turn.datum_N,
        }
        return row, outliers

    def update(self, turn: Turn) -> tuple[Step, Factors]:
        """The step itself, and the factors of the loss whose shifts are recorded; tallied."""
        datum_N = torch.from_numpy(turn.datum_N).to(self.engine.device)
        token_NT, target_NT = self.token_NT[datum_N], self.target_NT[datum_N]
        widths = self.tally.widths if self.tally else ()
        weights = {name: self.engine.units[name].detach().clone() for name in widths}
        step = self.engine.step(token_NT, target_NT, step=turn.step, epoch=turn.epoch)
        recorded = step.last.factors if step.last else step.factors
        if self.tally:
            self.tally.add(recorded, weights, step.scale, token_NT, target_NT)
        return step, recorded

    def retrace(self, store: Store, kept: list[Marker], report: Report) -> None:
        """Take the steps of the open window again, from a checkpoint; ``kept``: all markers so far.

        Its tallies are kept nowhere until it ends: steps are cheap and follow from their
        checkpoint, and a window's sums are large. So they become what they would have been.
        """
        done = kept[-1].end_step
        opened = done - done % self.plan.window_steps
        if not self.tally or opened == done or done == self.plan.num_steps:
            return
        marker = [marker for marker in kept if marker.end_step <= opened][-1]
        first_step = marker.end_step
        restore(self.engine, store, marker)
        for turn in itertools.islice(self.plan.turns(first_step), done - first_step):
            if turn.step == opened:
                self.tally.clear()
            self.update(turn)
            report(Retracing(turn.step + 1 - first_step, done - first_step))

    def audit(
        self, turn: Turn, step: Step, total_P: Tensor, before_P: Tensor, after_P: Tensor
    ) -> float:
        """The step's audit error; raises ``AuditError`` above the tolerance or without a number."""
        error = 0.0
        if step.last:
            wanted_P = self.layout.flatten(step.last.gradients) * step.scale
            error = relative_error(total_P, wanted_P)
            total_P = sum_shifts(step.factors, self.layout, step.scale)
        error = max(error, relative_error(total_P, after_P - before_P))
        allowed = self.plan.config.capture.audit_tolerance
        if not error <= allowed + rounding_error(before_P, after_P):
            problem = f"shifts miss the applied change by {error:.2e} of it, allowed: {allowed:.0e}"
            if not (math.isfinite(step.loss) and math.isfinite(after_P.norm())):
                problem = f"training has diverged (loss {step.loss:g}, weights out of range)"
            raise AuditError(f"step {turn.step}", problem, "Nothing of the open segment was stored")
        return error


def evaluations(plan: Plan, engine: Engine, turn: Turn) -> list[Evaluation]:
    """Loss on each held-out split of the corpus."""
    found = []
    for split in ("validation", "test"):
        datums = getattr(plan.corpus, split)
        if datums is not None:
            token_NT, target_NT = on_device(datums, engine.device)
            loss = evaluate(engine.model, token_NT, target_NT, batch=plan.config.training.batch)
            found.append(
                Evaluation(
                    turn.step + 1, turn.epoch, split, loss, math.exp(loss), target_NT.numel()
                )
            )
    return found


def on_device(datums: Datums, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets, [N, T] of int64."""
    token_NT = torch.from_numpy(datums.token_NT).long()
    return token_NT.to(device), torch.from_numpy(datums.target_NT).long().to(device)


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
