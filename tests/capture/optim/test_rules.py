"""Laws 1 and 11 in float64 for every optimizer of custom loops, against the optimizer's own steps.

Shapes: t step, R row, C column of the parameter.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capture.custom_loop.update import copied
from capture.errors import ConfigError
from capture.optim.lifetime import AppliedUpdate, Persistence
from capture.optim.rules import UnitUpdate, find_rule, refused_option
from capture.optim.rules.linear_rule import LinearRule
from capture.optim.rules.muon import orthogonalized

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
O = torch.optim  # noqa: E741


def transformers_adafactor(parameters: list[nn.Parameter], **more: Any) -> torch.optim.Optimizer:
    optimization = pytest.importorskip("transformers.optimization")
    return optimization.Adafactor(parameters, **more)


LINEAR: dict[str, Make] = {
    "SGD with dampening": lambda p: O.SGD(p, 0.1, 0.9, dampening=0.3, weight_decay=0.1),
    "SGD with Nesterov momentum": lambda p: O.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.1),
    "SGD, maximize": lambda p: O.SGD(p, 0.1, 0.9, maximize=True, weight_decay=0.1),
    "Adam with L2 decay": lambda p: O.Adam(p, 0.1, weight_decay=0.1),
    "Adam, amsgrad": lambda p: O.Adam(p, 0.1, betas=(0.9, 0.5), amsgrad=True, weight_decay=0.1),
    "AdamW, amsgrad, maximize": lambda p: O.AdamW(p, 0.1, (0.9, 0.5), amsgrad=True, maximize=True),
    "AdamW": lambda p: O.AdamW(p, 0.1, weight_decay=0.3),
    "RMSprop": lambda p: O.RMSprop(p, 0.1, weight_decay=0.1),
    "RMSprop, centered, momentum": lambda p: O.RMSprop(
        p, 0.1, 0.9, centered=True, momentum=0.8, weight_decay=0.1
    ),
    "Adagrad": lambda p: O.Adagrad(
        p, 0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.2
    ),
    "Adadelta": lambda p: O.Adadelta(p, 1.0, weight_decay=0.1),
    "ASGD": lambda p: O.ASGD(p, 0.1, lambd=0.1, weight_decay=0.1),
    "Adamax": lambda p: O.Adamax(p, 0.1, weight_decay=0.1),
    "NAdam": lambda p: O.NAdam(p, 0.1, weight_decay=0.1),
    "NAdam, decoupled decay": lambda p: O.NAdam(
        p, 0.1, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "RAdam": lambda p: O.RAdam(p, 0.1, weight_decay=0.1),  # beyond step 5 it is adaptive
    "RAdam, decoupled decay": lambda p: O.RAdam(
        p, 0.1, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "Adafactor": lambda p: O.Adafactor(p, 0.1, weight_decay=0.1),
    "Adafactor of transformers": lambda p: transformers_adafactor(p),
    "Adafactor of transformers, momentum": lambda p: transformers_adafactor(
        p, lr=0.1, beta1=0.9, weight_decay=0.1, relative_step=False, scale_parameter=False
    ),
}
MUON: dict[str, Make] = {
    "Muon": lambda p: O.Muon(p, 0.1),
    "Muon without Nesterov momentum": lambda p: O.Muon(
        p, 0.1, nesterov=False, adjust_lr_fn="match_rms_adamw"
    ),
}
SHAPES = {"matrix": (3, 5), "tall": (5, 3), "vector": (4,)}
STEPS = 8


def updates(make: Make, shape: tuple[int, ...]) -> tuple[nn.Parameter, Tensor, list[Any]]:
    """Take steps with drawn gradients, the rates of a warm-up, and one step left out.

    Returns the parameter, its first value, and each update with the change that it made.
    """
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    parameter = nn.Parameter(torch.randn(shape, **draw))
    first, optimizer = parameter.detach().clone(), make([parameter])
    rule, found = find_rule(optimizer), []
    group = optimizer.param_groups[0]
    rate = group["lr"]
    for step in range(STEPS):
        group["lr"] = rate if rate is None else rate * min(1.0, (step + 1) / 3)
        gradient = torch.randn(shape, **draw) * 10 ** (-step / 4)
        parameter.grad = gradient.clone()
        state = optimizer.state.get(parameter, {})
        weight, before = parameter.detach().clone(), copied(state, rule.reads)
        optimizer.step()
        update = UnitUpdate(weight, gradient, group, before, optimizer.state.get(parameter, {}))
        parts = rule.parts(update)
        applied = rule.coefficients(update) if isinstance(rule, LinearRule) else None
        found.append((gradient, parts, applied, parameter.detach() - weight))
    return parameter, first, found


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", LINEAR)
def test_the_parts_of_an_update_are_the_change_of_the_weights(name, shape):
    for gradient, parts, _, change in updates(LINEAR[name], shape)[2]:
        by = 1.0 if parts.preconditioner is None else parts.preconditioner
        found = parts.scale * by * gradient + (0.0 if parts.carry is None else parts.carry)
        torch.testing.assert_close(found, change, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LINEAR)
def test_lifetime_shifts_and_decay_of_the_start_are_the_change(name):
    parameter, first, found = updates(LINEAR[name], SHAPES["matrix"])
    after, total = Persistence(), torch.zeros_like(first)
    for gradient, _, applied, _ in reversed(found):
        total += after.of_gradient(applied) * gradient
        after = after.before(applied)
    total += (after.weight - 1) * first
    torch.testing.assert_close(total, parameter.detach() - first, rtol=1e-9, atol=1e-12)


def test_the_clip_factor_of_a_loop_multiplies_an_update():
    applied = AppliedUpdate(-0.1, -1.0, 1.0, 1.0, old=0.9, new=1.0)
    clipped = replace(applied, clip=applied.clip * 0.5)
    assert Persistence().of_gradient(clipped) == 0.5 * Persistence().of_gradient(applied)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("name", MUON)
def test_muons_map_and_carry_are_the_change_and_its_map_orthogonalizes(name, shape):
    for gradient, parts, _, change in updates(MUON[name], shape)[2]:
        found = parts.scale * parts.side_map(gradient) + parts.carry
        torch.testing.assert_close(found, change, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_without_rounding_muons_map_of_the_direction_is_its_result(shape):
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group = O.Muon([nn.Parameter(direction)]).param_groups[0]
    result, mapped = orthogonalized(direction, group, precision=torch.float64)
    torch.testing.assert_close(mapped(direction), result, rtol=1e-10, atol=1e-12)


def test_without_momentum_and_decay_muons_carry_is_the_rounding_to_bfloat16():
    """Datums then account for the update, but for what bfloat16 rounds (a few percent)."""

    def make(p: list[nn.Parameter]) -> torch.optim.Optimizer:
        return O.Muon(p, 0.1, momentum=0.0, weight_decay=0.0)

    for shape in ((3, 5), (5, 3), (16, 12)):
        for _, parts, _, change in updates(make, shape)[2]:
            assert parts.carry.norm() < 0.05 * change.norm()


@pytest.mark.parametrize("kind", [O.LBFGS, O.Rprop, O.SparseAdam])
def test_other_optimizers_are_refused_by_name_with_the_reason(kind):
    optimizer = kind([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ConfigError, match=f"is {kind.__name__}, whose updates .*: it "):
        find_rule(optimizer)


def test_a_differentiable_step_is_refused():
    group = O.Adam([nn.Parameter(torch.zeros(3))], differentiable=True).param_groups[0]
    assert refused_option(group) == ("differentiable", False)
