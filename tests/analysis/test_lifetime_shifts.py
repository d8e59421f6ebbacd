"""Law 11 on whole runs: lifetime shifts and decay of the initial weights sum to the change."""

import numpy as np
import pytest
from custom_loops import Sometimes
from recorded_loops import OPTIMIZERS, recorded
from tiny_run import make_run

from analysis.run.run import Run, open_run
from capture.errors import RunError, UnitError

UNIT = "layers.1.linear2.weight"
SGD = ("training.learning_rate=0.5", "training.schedule.kind=cosine")
MOMENTUM = (*SGD, "training.optimizer.momentum=0.9", "training.schedule.warmup_steps=3")
ADAM = ("training.learning_rate=0.01", "training.schedule.warmup_steps=3")
DECAY = "training.optimizer.weight_decay=0.3"
FACTORS = "capture.factors.enabled=true"
VARIANTS = {
    "sgd": SGD,
    "sgd-decay": (*SGD, "training.optimizer.weight_decay=0.01", FACTORS),
    "momentum": (*MOMENTUM, "training.accumulate=2"),
    "nesterov": (*MOMENTUM, "training.optimizer.nesterov=true", DECAY, FACTORS),
    "adam": (*ADAM, "training.optimizer.kind=adam", FACTORS),
    "adam-decay": (*ADAM, "training.optimizer.kind=adam", DECAY),
    "adamw": (*ADAM, "training.optimizer.kind=adamw", DECAY, "training.accumulate=2"),
}


SLOW = {"sgd-decay", "momentum", "adam-decay"}
"""Variants that differ little from others: for the slow proofs."""
CASES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in VARIANTS]


@pytest.fixture(scope="module", params=CASES)
def run(request) -> Run:
    return open_run(make_run(f"memory://lifetime-{request.param}", *VARIANTS[request.param]))


def change(run: Run, unit: str) -> np.ndarray:
    return (run.checkpoint()[unit].double() - run.checkpoint(0)[unit].double()).numpy()


def missed(run: Run, unit: str) -> float:
    """Return ‖Σ lifetime shifts + decay − change‖ / ‖change‖."""
    found = run.initial_decay(unit).astype(np.float64)
    for step in run.lifetime_shifts(unit):
        found += step.shift_N.sum(0, dtype=np.float64)
    return float(np.linalg.norm(found - change(run, unit)) / np.linalg.norm(change(run, unit)))


def test_lifetime_shifts_and_decay_are_the_change_of_the_weights(run):
    assert missed(run, UNIT) < 1e-5


def test_every_query_gives_the_same_lifetime_shift(run):
    steps = range(5, 16, 4)
    found = list(run.lifetime_shifts(UNIT, steps))
    assert [each.step for each in found] == [13, 9, 5]
    for each in found:
        assert each.datums == run.steps()["datums"][each.step].tolist()
        for slot in (0, 3):
            one = run.shift(each.step, each.datums[slot], UNIT, lifetime=True)
            scale = np.abs(one).max()
            np.testing.assert_allclose(each.shift_N[slot], one, rtol=1e-5, atol=1e-6 * scale)


def test_lifetime_shifts_equal_shifts_under_plain_sgd_and_in_the_last_step(run):
    last = run.steps_done - 1
    plain = run.config.training.optimizer.plain
    for step in (3, last):
        datum = run.steps()["datums"][step][1]
        shift, lifetime = (run.shift(step, datum, UNIT, lifetime=by) for by in (False, True))
        assert lifetime.dtype == np.float32
        if plain:
            np.testing.assert_array_equal(lifetime, shift)
        elif step == last:
            rounding = 1e-7 * np.abs(shift).max()
            np.testing.assert_allclose(lifetime, shift, rtol=1e-6, atol=rounding)
        else:
            assert np.abs(lifetime - shift).max() > 0.01 * np.abs(shift).max()


def test_only_weight_decay_takes_from_the_initial_weights(run):
    decays = run.config.training.optimizer.weight_decay > 0
    assert run.initial_decay(UNIT).any() == decays


def test_of_the_loss_at_the_last_position_lifetime_shifts_scale_the_recorded_gradient():
    options = (*MOMENTUM, "capture.loss_positions=last", "training.epochs=1")
    run = open_run(make_run("memory://lifetime-last", *options))
    (found,) = run.lifetime_shifts(UNIT, range(4, 5))
    shift = run.shift(4, found.datums[2], UNIT)
    ratio = found.shift_N[2][shift != 0] / shift[shift != 0]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)
    assert 2 < ratio.mean() < 10


# --- custom training loops ------------------------------------------------------------------------


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_custom_loop_with_factors_has_lifetime_shifts(tmp_path, make):
    run = recorded(tmp_path, make)
    assert all(missed(run, unit) < 1e-5 for unit in ("layer.weight", "norm.weight"))
    (found,) = run.lifetime_shifts("layer.weight", range(6, 7))
    one = run.shift(6, found.datums[1], "layer.weight", lifetime=True)
    np.testing.assert_array_equal(found.shift_N[1], one)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_lifetime_shifts_of_a_unit_that_some_steps_do_not_use(tmp_path, make):
    """The optimizer leaves weights, momentum and step count alone in these steps."""
    run = recorded(tmp_path, make, model=Sometimes())
    assert all(missed(run, unit) < 1e-5 for unit in ("embedding.weight", "layer.weight"))
    (found,) = run.lifetime_shifts("layer.weight", range(5, 6))
    assert not found.shift_N.any()


def test_a_custom_loop_without_factors_is_refused(tmp_path):
    run = recorded(tmp_path, OPTIMIZERS["sgd"], factors=False)
    for ask in (
        lambda: run.shift(1, 4, "layer.weight"),
        lambda: run.shift(1, 4, "layer.weight", lifetime=True),
        lambda: list(run.lifetime_shifts("layer.weight")),
        lambda: run.initial_decay("layer.weight"),
    ):
        remedy = r"whose steps cannot be replayed\. Record factors"
        with pytest.raises(RunError, match=remedy) as caught:
            ask()
        assert caught.value.__suppress_context__  # one message, no chain of traces


@pytest.mark.parametrize(
    ("ask", "kind", "text"),
    [
        (lambda run: run.lifetime_shifts("layer"), UnitError, "layer: was not captured"),
        (lambda run: run.initial_decay("layer"), UnitError, "was not captured"),
        (lambda run: run.shift(99, 0, UNIT, lifetime=True), RunError, "has no step 99"),
        (
            lambda run: run.lifetime_shifts(UNIT, range(90, 99)),
            RunError,
            "has steps 0 to 23, asked for 90 to 98",
        ),
        (lambda run: run.lifetime_shifts(UNIT, range(0)), RunError, "none of range.0, 0"),
    ],
)
def test_what_the_run_lacks_is_refused(ask, kind, text):
    with pytest.raises(kind, match=text):
        ask(open_run(make_run("memory://lifetime-lacks", *SGD)))
