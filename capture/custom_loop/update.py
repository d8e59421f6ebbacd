"""Split the update of a user's optimizer into gradient part, preconditioner and carry.

The inputs are the gradients that the optimizer is given and its state and settings, which are read
at every step because schedules change them. Between backward pass and step, a loop may multiply all
gradients by one number c (clipping, unscaling). Least squares finds it:
c = ⟨ĝ, Σ_i g_i⟩ / ‖Σ_i g_i‖². The audit detects any other change of the gradients.

Shapes: P all captured parameters.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from capture.errors import ConfigError
from capture.optim.optimizer import (
    InheritedTerms,
    Tensors,
    UpdateParts,
    inherited_terms,
    optimizer_state,
    split_update,
    state_names,
)
from capture.optim.optimizer_config import OptimizerConfig

KINDS = {torch.optim.SGD: "sgd", torch.optim.Adam: "adam", torch.optim.AdamW: "adamw"}
REQUIRED_OPTIONS = {"dampening": 0, "maximize": False, "amsgrad": False, "differentiable": False}
"""Optimizer options, each with the only value for which the update can be decomposed."""
ONE_TOLERANCE = 1e-6
"""A multiplier this close to 1 differs from 1 by rounding only."""


def optimizer_config(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> OptimizerConfig:
    """Return the settings of a parameter group.

    Raises ``ConfigError`` if updates with these settings cannot be decomposed.
    """
    kind = KINDS.get(type(optimizer))
    name = type(optimizer).__name__
    if kind is None:
        problem = f"is {name}, whose updates cannot be decomposed"
        raise ConfigError("optimizer", problem, "Use SGD, Adam or AdamW of torch.optim")
    for option, wanted in REQUIRED_OPTIONS.items():
        if (found := group.get(option, wanted)) != wanted:
            problem = f"is {name} with {option}={found}, whose updates cannot be decomposed"
            raise ConfigError("optimizer", problem, f"Set {option}={wanted}")
    decay = float(group["weight_decay"])
    if kind == "sgd":
        momentum, nesterov = float(group["momentum"]), bool(group["nesterov"])
        return OptimizerConfig(momentum=momentum, nesterov=nesterov, weight_decay=decay)
    beta1, beta2 = map(float, group["betas"])
    decoupled = kind == "adamw" or group.get("decoupled_weight_decay")
    return OptimizerConfig(
        kind="adamw" if decoupled else "adam",
        weight_decay=decay,
        beta1=beta1,
        beta2=beta2,
        epsilon=float(group["eps"]),
    )


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


def initial_learning_rate(group: Mapping[str, Any]) -> float:
    """Return a group's learning rate; a scheduler keeps the initial one beside the current one."""
    return float(group.get("initial_lr", group["lr"]))


def settings_of_groups(
    optimizer: torch.optim.Optimizer, units: Mapping[str, nn.Parameter]
) -> list[dict[str, Any]]:
    """Return what ``run.yaml`` says of the parameter groups other than the first unit's.

    ``rate`` is the ratio of the group's initial learning rate
    to the first unit's; it holds as long as schedules multiply all groups by one factor.
    """
    groups = groups_of_units(optimizer, units)
    first = next(iter(groups.values()))
    if not (divisor := initial_learning_rate(first)):
        return []
    found: dict[int, dict[str, Any]] = {}
    for name, group in groups.items():
        if group is not first:
            rate, config = (
                initial_learning_rate(group) / divisor,
                optimizer_config(optimizer, group),
            )
            settings = {"units": [], "rate": rate, "optimizer": vars(config)}
            found.setdefault(id(group), settings)["units"].append(name)
    return list(found.values())


@dataclass(frozen=True)
class ExpectedUpdate:
    """State and settings of the optimizer before an update, from which the update follows."""

    optimizer: torch.optim.Optimizer
    units: Mapping[str, nn.Parameter]
    groups: dict[str, dict[str, Any]]
    """Parameter group by unit."""
    configs: dict[str, OptimizerConfig]
    """Settings by unit."""
    inherited: dict[str, InheritedTerms]
    """Terms of momentum and weight decay by unit, which do not depend on the new gradients."""
    idle: frozenset[str]
    """Units without gradient, which the optimizer leaves as they are: momentum and decay too."""

    @classmethod
    def of(
        cls, optimizer: torch.optim.Optimizer, units: Mapping[str, nn.Parameter]
    ) -> "ExpectedUpdate":
        groups = groups_of_units(optimizer, units)
        configs = {name: optimizer_config(optimizer, group) for name, group in groups.items()}
        inherited = {}
        for name, config in configs.items():
            own, states = {name: units[name]}, state_names(config)
            moments = optimizer_state(optimizer, own, states[0]) if states else {}
            moments = {name: moment.to_dense() for name, moment in moments.items()}
            inherited[name] = inherited_terms(config, own, moments)
        idle = frozenset(name for name, unit in units.items() if unit.grad is None)
        return cls(optimizer, units, groups, configs, inherited, idle)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first unit."""
        return float(next(iter(self.groups.values()))["lr"])

    @property
    def most_rounding(self) -> OptimizerConfig:
        """Settings of the group that rounds weights most often: AdamW with decay, if present."""
        return max(self.configs.values(), key=lambda c: (c.kind == "adamw", c.weight_decay))

    def split(self, clip: float) -> UpdateParts:
        """Split the update; call this after the optimizer has updated its state.

        All units share one scale. A unit whose group has another learning rate has the ratio in its
        preconditioner.
        """
        parts = {name: self.split_unit(name, clip) for name in self.units if name not in self.idle}
        # The largest scale is the common one: no ratio divides by 0 unless all scales are 0.
        scale = max((part.scale for part in parts.values()), key=abs, default=0.0)
        none = {name: UpdateParts(scale, None, None) for name in self.idle}
        preconditioner, carry = None, None
        if any(part.preconditioner or part.scale != scale for part in parts.values()):
            parts |= none
            ratios = {n: part.scale / scale if scale else 1.0 for n, part in parts.items()}
            preconditioner = {
                name: self.tensor_or(parts[name].preconditioner, name, 1.0) * ratios[name]
                for name in self.units
            }
        if any(part.carry for part in parts.values()):
            parts |= none
            carry = {name: self.tensor_or(parts[name].carry, name, 0.0) for name in self.units}
        return UpdateParts(scale, preconditioner, carry)

    def split_unit(self, name: str, clip: float) -> UpdateParts:
        own = {name: self.units[name]}
        counted = self.optimizer.state[self.units[name]].get("step", 1)
        return split_update(
            self.configs[name],
            self.inherited[name],
            optimizer_state(self.optimizer, own, "exp_avg_sq"),
            learning_rate=float(self.groups[name]["lr"]),
            clip=clip,
            step=int(counted) - 1,  # the optimizer has counted this update already
        )

    def tensor_or(self, tensors: Tensors | None, name: str, value: float) -> Tensor:
        return tensors[name] if tensors else torch.full_like(self.units[name], value)


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
