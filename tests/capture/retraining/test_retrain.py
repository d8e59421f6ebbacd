"""Retraining with all weights 1 is training; other weights change only what they should."""

import numpy as np
import pytest
import torch
from tiny_run import copied, make_run, tiny_run

from capture.errors import ConfigError, InfluenceError
from capture.format import checkpoint
from capture.optim.optimizer import Tensors
from capture.replay.segments import ReplayableRun, read_replayable_run
from capture.retraining.retrain import retrain
from capture.retraining.weighting import Weighting
from capture.store import Store

ADAMW = ("training.optimizer.kind=adamw", "training.learning_rate=0.01", "training.epochs=1")
MICRO = ("training.accumulate=2", "training.epochs=1", "training.precision=bfloat16")


def past(uri: str) -> ReplayableRun:
    return read_replayable_run(Store(uri))


def num_datums(run: ReplayableRun) -> int:
    return len(run.plan.corpus.train)


def assert_equal(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def stored(run: ReplayableRun, step: int) -> Tensors:
    weights, _ = checkpoint.split_checkpoint(checkpoint.read_checkpoint(run.store, step))
    return weights


@pytest.mark.parametrize("settings", [(), ADAMW, MICRO], ids=["sgd", "adamw", "micro"])
def test_weights_of_1_give_the_last_checkpoint_bit_for_bit(settings: tuple[str, ...]) -> None:
    uri = make_run("memory://retrain/law", *settings) if settings else tiny_run()
    run = past(uri)
    reports: list[tuple[int, int]] = []
    same = Weighting.of(num_datums(run), {})
    found = retrain(run, same, first_step=0, report=lambda *given: reports.append(given))
    num_steps = run.plan.num_steps
    assert_equal(found, stored(run, num_steps))
    assert reports == [(step + 1, num_steps) for step in range(num_steps)]


def test_steps_before_the_first_change_are_not_taken_again() -> None:
    run = past(tiny_run())
    batch = next(run.plan.planned_steps(15)).datum_N
    weighting = Weighting(np.where(np.arange(51) == batch[2], 0.0, 1.0), steps=[15])
    reports: list[int] = []
    found = retrain(run, weighting, report=lambda done, wanted: reports.append(wanted))
    assert set(reports) == {24 - 14}
    assert_equal(found, retrain(run, weighting, first_step=0))
    assert not torch.equal(found["decoder.weight"], stored(run, 24)["decoder.weight"])


def test_no_change_gives_the_checkpoint_at_once() -> None:
    run = past(tiny_run())
    reports: list[int] = []
    found = retrain(run, Weighting.of(51, {}), report=lambda *given: reports.append(1))
    assert_equal(found, stored(run, 24))
    assert reports == []


def test_a_weight_of_0_is_training_without_the_datum_s_loss() -> None:
    """The datum's targets do not matter then."""
    run = past(tiny_run())
    weighting = Weighting.of(51, {3: 0.0})
    found = retrain(run, weighting)
    target_NT = run.plan.corpus.train.target_NT
    kept = target_NT[3].copy()
    target_NT[3] = (kept + 1) % 5
    try:
        again = retrain(run, weighting)
    finally:
        target_NT[3] = kept
    assert_equal(found, again)


def test_a_weight_of_2_doubles_the_gradient_of_the_datum() -> None:
    """The first step of plain SGD without clipping is linear in the weights."""
    run = past(make_run("memory://retrain/linear", "training.clip=1e9", "training.epochs=1"))
    datum = int(next(run.plan.planned_steps(0)).datum_N[1])

    def after(weight: float) -> Tensors:
        return retrain(run, Weighting.of(51, {datum: weight}), end_step=1)

    once, twice, never = after(1.0), after(2.0), after(0.0)
    for name in once:
        torch.testing.assert_close(
            twice[name] - once[name], once[name] - never[name], rtol=1e-3, atol=1e-6
        )


def test_training_stops_at_end_step() -> None:
    run = past(tiny_run())
    assert_equal(retrain(run, Weighting.of(51, {}), first_step=0, end_step=14), stored(run, 14))


def test_datums_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"datums: there is no training datum 51; there are 51"):
        Weighting.of(51, {51: 0.0})
    with pytest.raises(ConfigError, match="datum 2 has weight nan, must be a finite number"):
        Weighting(np.array([1.0, 1.0, np.nan]))


def test_divergence_is_one_line_that_names_the_step() -> None:
    run = past(tiny_run())
    with pytest.raises(InfluenceError, match=r"step \d+: retraining with these weights has diver"):
        retrain(run, Weighting.of(51, dict.fromkeys(range(51), 1e38)))


def test_the_run_stays_as_it_is() -> None:
    store = copied(tiny_run(), "memory://retrain/unchanged")
    before = {key: store.get(key) for key in store.keys()}
    run = past(store.uri)
    retrain(run, Weighting.of(51, {1: 0.0}))
    assert before == {key: store.get(key) for key in store.keys()}
