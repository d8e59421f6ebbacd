"""Split the update of a user's optimizer into gradient part, preconditioner and carry.

The inputs are the gradients that the optimizer is given and its state and settings, which are read
at every step because schedules change them. ``capture.optim.rules`` knows each kind of optimizer.

Between backward pass and step, a loop may multiply all gradients by one number c (clipping,
unscaling). Least squares finds it: c = ⟨ĝ, Σ_i g_i⟩ / ‖Σ_i g_i‖². The audit detects any other
change of the gradients.

Shapes: P all captured parameters.
"""

import math
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from capture.custom_loop.passes.gradient_changes import Multiplier
from capture.errors import ConfigError, UnitError
from capture.gradients.layout import Layout
from capture.optim.optimizer import Tensors, UpdateParts
from capture.optim.optimizer_config import OptimizerConfig
from capture.optim.rules import UnitParts, UnitUpdate, find_rule, refused_option
from capture.optim.rules.unit_update import Rule, rate_or_one

STEP_CODE = torch.optim.Optimizer.profile_hook_step(lambda *_: None).__code__  # pyright: ignore
"""Code of what torch wraps around the ``step`` of every class of optimizers."""
ONE_TOLERANCE = 1e-6
"""A multiplier this close to 1 differs from 1 by rounding only."""


def require_options(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for a group with an option whose updates cannot be decomposed."""
    if found := refused_option(group):
        option, wanted = found
        name = type(optimizer).__name__
        problem = f"is {name} with {option}={group[option]}, whose updates cannot be decomposed"
        raise ConfigError("optimizer", problem, f"Set {option}={wanted}")


def groups_of_units(
    optimizer: torch.optim.Optimizer, units: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Any]]:
    """Return the parameter group of each unit; raises ``ConfigError`` for one without a group."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in units.items():
        if id(parameter) not in groups or not parameter.requires_grad:
            problem = "is not a parameter that the optimizer trains"
            raise ConfigError("units", f"{name} {problem}", "Leave it out of units")
    return {name: groups[id(parameter)] for name, parameter in units.items()}


@dataclass(frozen=True)
class ExpectedUpdate:
    """State and settings of the optimizer before an update, from which the update follows."""

    optimizer: torch.optim.Optimizer
    rule: Rule
    units: Mapping[str, nn.Parameter]
    groups: dict[str, dict[str, Any]]
    """Parameter group by unit."""
    before: dict[str, dict[str, Any]]
    """Copies of the states that the rule reads, by unit."""
    idle: frozenset[str]
    """Units without gradient, which the optimizer leaves as they are: momentum and decay too."""

    @classmethod
    def of(
        cls, optimizer: torch.optim.Optimizer, units: Mapping[str, nn.Parameter]
    ) -> "ExpectedUpdate":
        groups, rule = groups_of_units(optimizer, units), find_rule(optimizer)
        for group in optimizer.param_groups:
            require_options(optimizer, group)
        states = {name: optimizer.state.get(unit, {}) for name, unit in units.items()}
        before = {name: copied(state, rule.reads) for name, state in states.items()}
        idle = frozenset(name for name, unit in units.items() if unit.grad is None)
        return cls(optimizer, rule, units, groups, before, idle)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first unit; 1.0 if the optimizer finds its own."""
        return rate_or_one(next(iter(self.groups.values()))["lr"])

    @property
    def most_rounding(self) -> OptimizerConfig:
        """Settings that round weights as often as this optimizer does: AdamW's, or SGD's."""
        if any(self.rule.decays(group) for group in self.groups.values()):
            return OptimizerConfig(kind="adamw", weight_decay=1.0)
        return OptimizerConfig()

    def split(
        self,
        clip: float,
        grads: Tensors,
        before_P: Tensor,
        multipliers: Mapping[str, Multiplier] | None = None,
    ) -> UpdateParts:
        """Split the update; call this after the optimizer has updated its state.

        ``grads``: the gradients that it was given, by unit; ``before_P``: the weights before it;
        ``multipliers``: by what the loop had multiplied those of some units, besides ``clip``.
        All units share one scale. A unit whose group has another learning rate has the ratio in its
        preconditioner, and so has one with a multiplier. Raises ``UnitError`` for a multiplier for
        each entry under an optimizer that mixes entries.
        """
        multipliers = multipliers or {}
        layout = Layout.of(self.units)
        weights = zip(layout.names, before_P.split(layout.sizes), strict=True)
        before = {name: own_S.view(layout.shapes[name]) for name, own_S in weights}
        parts = {
            name: self.split_unit(name, grads[name], before[name])
            for name in self.units
            if name not in self.idle
        }
        # The largest scale is the common one: no ratio divides by 0 unless all scales are 0.
        scale = max((part.scale for part in parts.values()), key=abs, default=0.0)
        parts |= {name: UnitParts(scale) for name in self.idle}
        preconditioner, carry = None, None
        maps = {name: part.side_map for name, part in parts.items() if part.side_map is not None}
        require_unmixed(maps, multipliers)
        is_equal = all(p.preconditioner is None and p.scale == scale for p in parts.values())
        if multipliers or not is_equal:
            ratios = {n: part.scale / scale if scale else 1.0 for n, part in parts.items()}
            preconditioner = {
                name: self.tensor_or(parts[name].preconditioner, name, 1.0)
                * (multipliers.get(name, 1.0) * ratios[name])
                for name in self.units
            }
        if any(part.carry is not None for part in parts.values()):
            carry = {name: self.tensor_or(parts[name].carry, name, 0.0) for name in self.units}
        return UpdateParts(scale * clip, preconditioner, carry, maps or None)

    def split_unit(self, name: str, gradient: Tensor, weight: Tensor) -> UnitParts:
        unit = self.units[name]
        after = self.optimizer.state.get(unit, {})
        group = self.groups[name]
        return self.rule.parts(UnitUpdate(weight, gradient, group, self.before[name], after))

    def tensor_or(self, tensor: Tensor | None, name: str, value: float) -> Tensor:
        return torch.full_like(self.units[name], value) if tensor is None else tensor


def require_unmixed(maps: Collection[str], multipliers: Mapping[str, Multiplier]) -> None:
    """Raise ``UnitError`` for a unit with multipliers of entries and a map that mixes them."""
    for name in maps:
        if isinstance(multipliers.get(name, 1.0), Tensor):
            problem = "was clipped by value for an optimizer that mixes its entries (Muon)"
            raise UnitError(name, problem, "Clip the norm instead (clip_grad_norm_)")


def copied(state: Mapping[str, Any], reads: tuple[str, ...] | None) -> dict[str, Any]:
    """Return copies of the named states, dense; None: of all."""
    wanted = {key: state[key] for key in (state if reads is None else reads) if key in state}
    return {
        key: value.detach().to_dense().clone() if isinstance(value, Tensor) else value
        for key, value in wanted.items()
        if value is not None
    }


def gradient_multiplier(given_P: Tensor, summed_P: Tensor) -> float:
    """Return c with given ≈ c · summed, by least squares; 1.0 if they differ by rounding only.

    ``given_P``: gradients that the optimizer is given; ``summed_P``: sum of per-sample gradients.
    """
    given_P, summed_P = given_P.double(), summed_P.double()
    size = float(summed_P @ summed_P)
    found = float(given_P @ summed_P) / size if size else 1.0
    return 1.0 if abs(found - 1) < ONE_TOLERANCE else found


def total_gradient_norm(optimizer: torch.optim.Optimizer) -> float:
    """Return the norm of the gradients of all parameters that the optimizer trains."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    grads = [p.grad.to_dense() for p in parameters if p.grad is not None]
    return math.sqrt(sum(float(norm) ** 2 for norm in map(Tensor.norm, grads)))


def given_gradient(unit: nn.Parameter, pending_scale: float) -> Tensor:
    """Return a dense copy of the gradient that the optimizer applies; 0 for an idle unit."""
    if unit.grad is None:
        return torch.zeros_like(unit)
    grad = unit.grad.to_dense()
    return grad / pending_scale if pending_scale != 1 else grad.clone()


def scale_of_fused_optimizer(optimizer: torch.optim.Optimizer) -> float:
    """Return the number by which a fused optimizer will divide gradients within its step.

    A ``GradScaler`` leaves this to fused optimizers: it sets ``grad_scale`` and ``found_inf`` while
    it calls ``step``.
    """
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def skips_step(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a fused optimizer will change nothing, for gradients are infinite."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def is_inner_step(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step of an optimizer runs within another one of it: ``super().step()``.

    Torch calls the hooks of both. Running calls are found on Python's stack, where an error within
    a step leaves none.
    """
    frame, running = sys._getframe(), 0
    while frame is not None:
        if frame.f_code is STEP_CODE and frame.f_locals.get("self") is optimizer:
            running += 1
        frame = frame.f_back
    return running > 1


def run_after_closure(
    observe: Callable[[], None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Call ``observe``, or return arguments of ``step`` with a closure that calls it at its end.

    A closure runs the forward and backward pass inside ``optimizer.step``, as in Lightning's
    automatic optimization. What precedes the update is then observed at the end of the closure.

    ``args`` and ``kwargs``: those of ``optimizer.step``, the optimizer first. The supported
    optimizers call their closure once, before they read any gradient.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        observe()
        return None

    @wraps(closure)
    def observed(*inner: Any, **named: Any) -> Any:
        loss = closure(*inner, **named)
        observe()
        return loss

    if len(args) > 1:
        return (args[0], observed, *args[2:]), kwargs
    return args, kwargs | {"closure": observed}
