"""Replayed steps equal those of training bit for bit."""

from dataclasses import replace

import pytest
import torch
from tiny_run import copied as copied_run
from tiny_run import tiny_run
from torch import Tensor

from analysis.run.run import Run, open_run
from capture.engine.build import build_engine
from capture.engine.observer import Observer
from capture.errors import ReplayError
from capture.format import checkpoint
from capture.format.markers import File
from capture.replay.segments import ReplayableRun, read_replayable_run
from capture.replay.steps import StepReplayer, Weights, copy_weights
from capture.store import Store

UNITS = ["decoder.weight", "encoder.weight"]
THREADS = torch.get_num_threads()


def replayer(run: Run, replayable: ReplayableRun | None = None) -> StepReplayer:
    return StepReplayer(replayable or read_replayable_run(run.store), [run.start, *run.segments])


@pytest.fixture(scope="module")
def run() -> Run:
    return open_run(tiny_run())


@pytest.fixture(scope="module")
def states(run: Run) -> list[Weights]:
    """Weights before the first step and after each step, from one uninterrupted training."""
    plan = read_replayable_run(run.store).plan
    engine = build_engine(plan, ())
    observer = Observer(plan, engine, ())
    found = [copy_weights(engine, UNITS)]
    for planned in plan.planned_steps(0):
        observer.step(planned)
        found.append(copy_weights(engine, UNITS))
    return found


def assert_same(found: Weights, wanted: Weights) -> None:
    assert list(found) == UNITS
    assert all(torch.equal(found[name], wanted[name]) for name in UNITS)


@pytest.mark.parametrize("steps", [0, 1, 7, 10, 24])
def test_weights_after_any_step_equal_those_of_training(
    steps: int, run: Run, states: list[Weights]
) -> None:
    reports: list[int] = []
    found = replayer(run).weights_after(steps, UNITS, lambda: reports.append(1))
    assert_same(found, states[steps])
    assert len(reports) == steps % 7 if steps < 24 else len(reports) == 0
    assert len(reports) == replayer(run).num_steps(range(steps, steps))


def test_updates_connect_successive_weights(run: Run, states: list[Weights]) -> None:
    reports: list[int] = []
    steps = range(5, 16)
    updates = list(replayer(run).updates(steps, UNITS, lambda: reports.append(1)))
    assert [update.step for update in updates] == list(steps)
    assert len(reports) == replayer(run).num_steps(steps) == 16
    table = run.steps().to_dict("records")
    for update in updates:
        assert_same({name: update.before[name] for name in UNITS}, states[update.step])
        assert_same({name: update.after[name] for name in UNITS}, states[update.step + 1])
        row = table[update.step]
        assert update.datum_N == row["datums"].tolist()
        assert update.scale == pytest.approx(-row["learning_rate"] * row["clip"], rel=1e-6)
        assert sorted(update.factors) == UNITS


def test_replay_uses_the_loss_of_all_positions() -> None:
    """Training uses the loss of all positions, even if the run records only the last one."""
    run = open_run(tiny_run())
    replayable = read_replayable_run(run.store)
    capture = replace(replayable.plan.config.capture, loss_positions="last")
    plan = replace(replayable.plan, config=replace(replayable.plan.config, capture=capture))
    last = replayer(run, replace(replayable, plan=plan))
    (update,) = last.updates(range(1), UNITS, lambda: None)
    (decoder,) = update.factors["decoder.weight"]
    assert bool((decoder.delta_NTO.abs().sum((0, 2)) > 0).all())


def changed(weights: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    return {name: weight * (1 + by) for name, weight in weights.items()}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy of the run whose files are not compared with their markers."""
    monkeypatch.setattr(File, "__eq__", lambda self, other: self.key == other.key)
    return copied_run(tiny_run(), "memory://replay/elsewhere")


def put_changed(store: Store, by: float) -> None:
    key = checkpoint.key_of(7)
    weights = checkpoint.read_checkpoint(store, 7)
    store.put(key, checkpoint.encode(changed(weights, by)))


def test_replay_continues_from_a_checkpoint_that_differs_by_rounding(
    elsewhere: Store,
) -> None:
    put_changed(elsewhere, 1e-6)
    before, after = replayer(open_run(elsewhere.uri)).updates(range(6, 8), UNITS, lambda: None)
    missed = (after.before["decoder.weight"] / before.after["decoder.weight"]).median() - 1
    assert float(missed) == pytest.approx(1e-6, rel=0.2)


@pytest.mark.parametrize("by", [1e-3, float("nan")])
def test_a_checkpoint_that_differs_from_the_replay_is_refused(elsewhere: Store, by: float) -> None:
    put_changed(elsewhere, by)
    with pytest.raises(ReplayError) as caught:
        list(replayer(open_run(elsewhere.uri)).updates(range(8), UNITS, lambda: None))
    assert "elsewhere/checkpoints/step-000007.safetensors: replayed weights differ" in str(
        caught.value
    )
    assert "Replay where it was captured" in str(caught.value)


def test_steps_are_replayed_with_the_run_s_number_of_threads(run: Run) -> None:
    found = replayer(run, replace(read_replayable_run(run.store), threads=THREADS + 1))
    seen: list[int] = []
    engine = found.engine(UNITS, ())
    step = engine.step
    engine.step = lambda *given, **named: (
        seen.append(torch.get_num_threads()) or step(*given, **named)
    )
    list(found.advance(engine, 0, 1))
    assert seen == [THREADS + 1]
    assert torch.get_num_threads() == THREADS
