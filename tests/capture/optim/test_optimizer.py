"""Law 1 for every optimizer: shifts and carry add up, and each shift belongs to its datum.

Shapes: N datum, P captured parameter, S entry of a made-up parameter.
"""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import random_batch, tiny_model
from torch import Tensor, nn

from capture.engine.audit import discrepancies
from capture.engine.engine import Engine
from capture.engine.step import Step
from capture.errors import ConfigError, ShardError
from capture.gradients.dense import sum_shifts, write_shifts
from capture.gradients.factors import choose_units
from capture.gradients.layout import Layout
from capture.optim.config import TrainingConfig
from capture.optim.optimizer import (
    UpdateParts,
    inherited_terms,
    make_optimizer,
    optimizer_state,
    restore,
    snapshot,
    split_update,
    state_names,
)
from capture.optim.optimizer_config import OptimizerConfig, describe_optimizer
from capture.optim.schedule import ScheduleConfig
from capture.optim.update import relative_error

KINDS = {
    "sgd": OptimizerConfig(),
    "decay": OptimizerConfig(weight_decay=0.01),
    "momentum": OptimizerConfig(momentum=0.9),
    "nesterov": OptimizerConfig(momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": OptimizerConfig(kind="adam"),
    "adam-decay": OptimizerConfig(kind="adam", beta1=0.8, weight_decay=0.1),
    "adamw": OptimizerConfig(kind="adamw", beta2=0.95, weight_decay=0.1),
    "forgetful": OptimizerConfig(kind="adamw", beta1=0.0, epsilon=1e-4),
}
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)


def make_engine(config: OptimizerConfig, *, last_only: bool = False, **training) -> Engine:
    model = tiny_model()
    units = choose_units(model, ["layers.*"])
    rate = 0.5 if config.kind == "sgd" else 0.01
    training = {"device": "cpu", "batch": 6, "learning_rate": rate} | training
    made = TrainingConfig(optimizer=config, **training)
    return Engine(model, made, units=units, last_only=last_only, seed=5, num_steps=9)


def take(engine: Engine, number: int) -> tuple[Step, Tensor, Tensor]:
    """Take a step; return it and the captured weights before and after it."""
    layout = Layout.of(engine.units)
    before_P = layout.flatten(engine.units)
    step = engine.step(*random_batch(6, seed=number), step=number, epoch=number // 2)
    return step, before_P, layout.flatten(engine.units)


# --- law 1 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [0.1, 1e9])
@every_kind
def test_shifts_and_carry_are_the_applied_change(config, clip, accumulate, last_only):
    """Both sides are divided by the preconditioner, which would amplify rounding errors."""
    schedule = ScheduleConfig(kind="cosine", warmup_steps=2, least=0.5)
    options = {"clip": clip, "accumulate": accumulate, "schedule": schedule}
    engine = make_engine(config, last_only=last_only, **options)
    layout = Layout.of(engine.units)
    for number in range(4):
        step, before_P, after_P = take(engine, number)
        assert (step.clip < 1) == (clip < 1)
        found_P = sum_shifts(step.factors, layout, step.scale, step.preconditioner)
        if step.carry:
            found_P += layout.flatten(step.carry)
        metric_P = layout.flatten(step.preconditioner) if step.preconditioner else 1.0
        change_P = after_P - before_P
        stored = 3 * 2**-24 * (after_P / metric_P).norm() / (change_P / metric_P).norm()
        assert relative_error(found_P / metric_P, change_P / metric_P) < 1e-5 + stored
        recorded = step.last.factors if step.last else step.factors
        total_P = sum_shifts(recorded, layout, step.scale, step.preconditioner)
        found = discrepancies(step, layout, total_P, before_P, after_P, engine.config)
        assert all(each.unexplained < 1e-5 for each in found)
        assert any(each.error > 0 for each in found)


def test_adam_turns_rounding_of_a_zero_gradient_into_a_full_update():
    """The audit therefore compares before the preconditioner. A key's bias has gradient zero."""
    engine = make_engine(OptimizerConfig(kind="adam", epsilon=1e-12), clip=1e9)
    layout = Layout.of(engine.units)
    step, before_P, after_P = take(engine, 0)
    assert step.preconditioner
    shift_NP = torch.empty(6, layout.size)
    for name, shift_NS in zip(layout.names, shift_NP.split(layout.sizes, 1), strict=True):
        write_shifts(step.factors[name], step.scale, shift_NS)
        shift_NS *= step.preconditioner[name].flatten()
    total_P = shift_NP.sum(0)
    assert relative_error(total_P, after_P - before_P) > 1e-2
    found = discrepancies(step, layout, total_P, before_P, after_P, engine.config)
    assert max(each.unexplained for each in found) < 1e-6


@every_kind
def test_plain_sgd_alone_has_nothing_to_carry_or_to_compare_with(config):
    engine = make_engine(config)
    take(engine, 0)
    step, _, _ = take(engine, 1)
    nothing = (step.preconditioner, step.carry, step.gradients) == (None, None, None)
    assert nothing == config.plain == (config == OptimizerConfig())
    assert (step.preconditioner is not None) == (config.kind != "sgd")


# --- law 3: micro-batches -------------------------------------------------------------------------


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_micro_batches_change_no_datum_s_shift(accumulate, last_only):
    engines = [
        make_engine(KINDS["adamw"], last_only=last_only, accumulate=a) for a in (1, accumulate)
    ]
    (whole, _, _), (parts, _, _) = (take(engine, 0) for engine in engines)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)
    for a, b in [(whole, parts), *([(whole.last, parts.last)] if last_only else [])]:
        for name, uses in a.factors.items():
            for one, other in zip(uses, b.factors[name], strict=True):
                torch.testing.assert_close(one.delta_NTO, other.delta_NTO, rtol=1e-4, atol=1e-7)
                if one.a_NTI is not None:
                    torch.testing.assert_close(one.a_NTI, other.a_NTI, rtol=1e-4, atol=1e-6)


# --- each datum's shift, against the papers' algorithms in float64 --------------------------------


def reference_weights(
    config: OptimizerConfig, theta_S: Tensor, grads: list[Tensor], last: Tensor, rate: float
) -> Tensor:
    """Return θ after the algorithm has taken the gradients ``grads``.

    ``last`` replaces the last gradient except in Adam's second moment: the preconditioner is that
    of the step and does not change if a datum is left out.
    """
    m_S = v_S = torch.zeros_like(theta_S)
    for t, grad_S in enumerate(grads, 1):
        seen_S = last if t == len(grads) else grad_S
        l2_S = 0.0 if config.kind == "adamw" else config.weight_decay * theta_S
        shrunk_S = config.weight_decay * theta_S if config.kind == "adamw" else 0.0
        if config.kind == "sgd":
            m_S = config.momentum * m_S + seen_S + l2_S
            step_S = seen_S + l2_S + config.momentum * m_S if config.nesterov else m_S
        else:
            m_S = config.beta1 * m_S + (1 - config.beta1) * (seen_S + l2_S)
            v_S = config.beta2 * v_S + (1 - config.beta2) * (grad_S + l2_S) ** 2
            root_S = (v_S / (1 - config.beta2**t)).sqrt() + config.epsilon
            step_S = m_S / (1 - config.beta1**t) / root_S
        theta_S = theta_S - rate * (step_S + shrunk_S)
    return theta_S


@given(name=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 99), steps=st.integers(1, 5))
def test_a_datum_s_shift_is_the_update_minus_the_update_without_it(name, seed, steps):
    config, generator = KINDS[name], torch.Generator().manual_seed(seed)
    grad_tNS = torch.randn(steps, 4, 7, generator=generator, dtype=torch.float64)
    start_S = torch.randn(7, generator=generator, dtype=torch.float64)
    parameter = nn.Parameter(start_S.clone())
    units = {"w": parameter}
    optimizer = make_optimizer(units.values(), config, 0.1)
    parts = UpdateParts(0.0, None, None)
    for number, grad_NS in enumerate(grad_tNS):
        parameter.grad = grad_NS.sum(0)
        momentum = (
            optimizer_state(optimizer, units, state_names(config)[0]) if state_names(config) else {}
        )
        inherited = inherited_terms(config, units, momentum)
        optimizer.step()
        squares = optimizer_state(optimizer, units, "exp_avg_sq")
        parts = split_update(config, inherited, squares, learning_rate=0.1, clip=1.0, step=number)
    sums = list(grad_tNS.sum(1))
    whole_S = reference_weights(config, start_S, sums, sums[-1], 0.1)
    torch.testing.assert_close(parameter.detach(), whole_S, rtol=1e-9, atol=1e-12)
    preconditioner_S = parts.preconditioner["w"] if parts.preconditioner else 1.0
    for grad_S in grad_tNS[-1]:
        wanted_S = whole_S - reference_weights(config, start_S, sums, sums[-1] - grad_S, 0.1)
        found_S = parts.scale * preconditioner_S * grad_S
        torch.testing.assert_close(found_S, wanted_S, rtol=1e-9, atol=1e-12)


# --- the optimizer's state ------------------------------------------------------------------------


@every_kind
def test_a_restored_engine_continues_with_the_same_bits(config):
    engine = make_engine(config)
    take(engine, 0)
    take(engine, 1)
    kept = copy.deepcopy(engine.snapshot())
    take(engine, 2)
    other = make_engine(config)
    take(other, 5)  # state that restoring must replace
    other.restore(kept, 2, "checkpoint")
    take(other, 2)
    for (name, one), again in zip(
        engine.snapshot().items(), other.snapshot().values(), strict=True
    ):
        assert torch.equal(one, again), name


@every_kind
def test_checkpoints_hold_the_optimizer_s_state_and_no_more(config):
    engine = make_engine(config)
    weights = set(engine.model.state_dict())
    assert set(engine.snapshot()) == weights
    take(engine, 0)
    states = {"sgd": set(), "momentum": {"momentum_buffer"}}
    wanted = states["momentum" if config.momentum else "sgd"]
    wanted = wanted if config.kind == "sgd" else {"exp_avg", "exp_avg_sq"}
    found = set(engine.snapshot()) - weights
    assert found == {f"optimizer/{state}/{name}" for state in wanted for name in weights}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda kept: kept.pop("exp_avg/w"), "here: lacks optimizer/exp_avg/w. Run: ontogeny ver"),
        (lambda kept: kept.clear(), "here: lacks optimizer/exp_avg/w."),
        (
            lambda kept: kept.update({"momentum_buffer/w": torch.ones(3)}),
            "here: has an unknown optimizer/momentum_buffer/w.",
        ),
        (
            lambda kept: kept.update({"exp_avg_sq/w": torch.ones(4)}),
            "here: has optimizer/exp_avg_sq/w of another shape or type.",
        ),
    ],
)
def test_the_state_of_another_optimizer_is_refused(change, text):
    config, parameters = KINDS["adam"], {"w": nn.Parameter(torch.ones(3))}
    optimizer = make_optimizer(parameters.values(), config, 0.1)
    parameters["w"].grad = torch.ones(3)
    optimizer.step()
    kept = snapshot(optimizer, parameters)
    change(kept)
    with pytest.raises(ShardError) as caught:
        restore(optimizer, parameters, kept, config=config, step=1, where="here")
    assert str(caught.value).startswith(text)


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"nesterov": True},
            "nesterov: got true without momentum. Set training.optimizer.momentum too",
        ),
        ({"momentum": 1.0}, "momentum: got 1.0, must be at least 0 and below 1"),
        ({"momentum": 0.9, "kind": "adamw"}, "momentum: got 0.9, but the optimizer is adamw."),
        ({"beta1": -0.1}, "beta1: got -0.1, must be at least 0 and below 1"),
        ({"beta2": 1.0}, "beta2: got 1.0, must be at least 0 and below 1"),
        ({"weight_decay": -1.0}, "weight_decay: got -1.0, must be at least 0 and finite"),
        ({"weight_decay": float("nan")}, "weight_decay: got nan, must be at least 0 and finite"),
        ({"epsilon": 0.0}, "epsilon: got 0.0, must be above 0 and finite"),
    ],
)
def test_invalid_settings_are_explained(values, text):
    with pytest.raises(ConfigError) as caught:
        OptimizerConfig(**values)
    assert str(caught.value).startswith(f"training.optimizer.{text}")


def test_an_optimizer_is_described():
    assert [describe_optimizer(KINDS[name]) for name in ("sgd", "nesterov", "adamw")] == [
        "SGD",
        "SGD with Nesterov momentum 0.9, weight decay 0.01",
        "AdamW (β₁ 0.9, β₂ 0.95), weight decay 0.1",
    ]
    other = OptimizerConfig(kind="other", name="RMSprop", weight_decay=0.1)
    assert describe_optimizer(other) == "RMSprop, weight decay 0.1"


def test_another_optimizer_is_only_for_loops_of_users():
    with pytest.raises(ConfigError, match="kind: other is only for runs of your own training loop"):
        OptimizerConfig(kind="other")
    other = OptimizerConfig(kind="other", name="RMSprop")
    with pytest.raises(ConfigError, match="is RMSprop, which only a training loop of your own"):
        make_optimizer([torch.nn.Parameter(torch.zeros(3))], other, 1.0)


def test_a_nesterov_step_leaves_the_gradients_unchanged_for_the_audit():
    weight = torch.nn.Parameter(torch.zeros(3))
    config = OptimizerConfig(momentum=0.9, nesterov=True)
    made = make_optimizer([weight], config, 0.1)
    assert made.defaults["foreach"] is False
    weight.grad = torch.ones(3)
    made.step()
    assert weight.grad.tolist() == [1, 1, 1]
