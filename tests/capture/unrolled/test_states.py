"""States come back from last to first with the bits of training, however little memory they get."""

import weakref

import pytest
import torch
from tiny_run import copied, make_run, tiny_run

from analysis.run.run import open_run
from capture.engine.build import build_engine
from capture.engine.engine import Engine
from capture.engine.observer import Observer
from capture.errors import CaptureError, ConfigError, RunError
from capture.format import checkpoint
from capture.replay.segments import ReplayableRun, read_replayable_run
from capture.unrolled.states import (
    MAX_BYTES,
    BackwardStep,
    BackwardWalker,
    TrainingState,
    backward_steps,
    state_of,
)

ADAMW = ("training.optimizer.kind=adamw", "training.learning_rate=0.01", "training.epochs=1")


def backward(uri: str, steps: range, *, max_bytes: int = MAX_BYTES) -> list[BackwardStep]:
    run = open_run(uri)
    markers = [run.start, *run.segments]
    return list(backward_steps(read_replayable_run(run.store), markers, steps, max_bytes=max_bytes))


def trained(run: ReplayableRun) -> list[TrainingState]:
    """The states before and after each step, from one uninterrupted training."""
    engine = build_engine(run.plan, ())
    observer = Observer(run.plan, engine, ())
    found = [state_of(engine, 0)]
    for planned in run.plan.planned_steps(0):
        observer.step(planned)
        found.append(state_of(engine, planned.step + 1))
    return found


def assert_same(found: TrainingState, wanted: TrainingState) -> None:
    assert found.step == wanted.step
    for mine, theirs in ((found.weights, wanted.weights), (found.moments, wanted.moments)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def adam() -> str:
    return make_run("memory://unrolled/adam", *ADAMW)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_states_have_the_bits_of_training(kind: str, adam: str) -> None:
    uri = adam if kind == "adam" else make_run("memory://unrolled/sgd")
    states = trained(read_replayable_run(open_run(uri).store))
    found = backward(uri, range(len(states) - 1))
    assert [step.step for step in found] == list(range(len(states) - 1))[::-1]
    for step in found:
        assert_same(step.before, states[step.step])
        assert_same(step.after, states[step.step + 1])


def test_halving_gives_the_same_states(adam: str) -> None:
    states = trained(read_replayable_run(open_run(adam).store))
    for most in (8, 9, 11):
        found = backward(adam, range(2, 11), max_bytes=most * states[-1].num_bytes)
        assert [step.step for step in found] == list(range(2, 11))[::-1]
        for step in found:
            assert_same(step.before, states[step.step])
            assert_same(step.after, states[step.step + 1])


def test_too_little_memory_is_refused(adam: str) -> None:
    size = trained(read_replayable_run(open_run(adam).store))[-1].num_bytes
    with pytest.raises(ConfigError, match=r"max_bytes: got .* must be at least .* for 5 steps"):
        backward(adam, range(12), max_bytes=2 * size)


def test_the_loss_of_a_step_is_that_of_training(adam: str) -> None:
    table = open_run(adam).steps()
    for step in backward(adam, range(12)):
        share_NT = step.loss.shares(step.before.weights)
        row = table.iloc[step.step]
        assert share_NT.shape == (4, 8)
        assert float(share_NT.sum()) == pytest.approx(row["loss"], rel=1e-6)
        assert step.clip == pytest.approx(row["clip"])
        assert step.learning_rate == row["learning_rate"]
        assert step.planned.datum_N.tolist() == row["datums"].tolist()


def test_shares_of_micro_batches_are_those_of_the_batch() -> None:
    uri = make_run("memory://unrolled/micro", "training.accumulate=2", "training.epochs=1")
    (step,) = backward(uri, range(1))
    whole_NT = step.loss.shares(step.before.weights)
    parts = [step.loss.shares(step.before.weights, slots) for slots in step.loss.micro_batches]
    assert len(parts) == 2
    torch.testing.assert_close(torch.cat(parts), whole_NT)


def test_float64_weights_give_float64_losses(adam: str) -> None:
    (step,) = backward(adam, range(3, 4))
    exact_NT = step.loss.shares({name: own.double() for name, own in step.before.weights.items()})
    assert exact_NT.dtype == torch.float64
    torch.testing.assert_close(exact_NT.float(), step.loss.shares(step.before.weights))


def test_steps_that_were_not_taken_are_refused(adam: str) -> None:
    with pytest.raises(RunError, match=r"has no steps 11..12; it has 12"):
        backward(adam, range(11, 13))


def test_a_missing_checkpoint_is_named() -> None:
    store = copied(tiny_run(), "memory://unrolled/missing")
    store.delete(checkpoint.key_of(14))
    with pytest.raises(CaptureError, match=r"step-000014.safetensors: is missing. Copy the run"):
        backward(store.uri, range(24))


def test_a_walk_holds_no_more_states_than_allowed(
    adam: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = read_replayable_run(open_run(adam).store)
    engine = build_engine(past.plan, ())
    alive: weakref.WeakSet[TrainingState] = weakref.WeakSet()
    counts: list[int] = []

    def counted(engine: Engine, step: int) -> TrainingState:
        state = state_of(engine, step)
        alive.add(state)
        counts.append(len(alive))
        return state

    monkeypatch.setattr("capture.unrolled.states.state_of", counted)
    first = counted(engine, 0)
    walker = BackwardWalker(past, engine, 8 * trained(past)[-1].num_bytes, {})
    found = [step.step for step in walker.walk(first, 12)]
    assert found == list(range(12))[::-1]
    assert len(counts) > 13
    assert max(counts) <= 8
