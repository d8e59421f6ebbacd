"""An update by somebody's own optimizer, taken apart: what each parameter group makes of gradients.

Nothing is known but the gradients that the optimizer is given and its own state and settings, read
at every step, for schedules change them. Whatever has been done to the gradients since the backward
pass (clipping, unscaling) must have multiplied all of them by one number c, which is found by least
squares: c = ⟨ĝ, Σ_i g_i⟩ / ‖Σ_i g_i‖². Anything else that was done to them, the audit finds.

Shapes: P all captured parameters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from capture.errors import ConfigError
from capture.optim.optimizer import (
    Legacy,
    OptimizerConfig,
    Split,
    Tensors,
    inherit,
    split,
    state_of,
    states_of,
)

KINDS = {torch.optim.SGD: "sgd", torch.optim.Adam: "adam", torch.optim.AdamW: "adamw"}
REFUSED = {"dampening": 0, "maximize": False, "amsgrad": False, "differentiable": False}
"""Options of theirs, and the only value for which the update can be taken apart."""
SAME = 1e-6
"""So near to 1, a factor is 1 but for rounding."""


def config_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> OptimizerConfig:
    """A parameter group's settings; raises ``ConfigError`` if its updates cannot be taken apart."""
    kind = KINDS.get(type(optimizer))
    name = type(optimizer).__name__
    if kind is None:
        problem = f"is {name}, whose updates cannot be taken apart"
        raise ConfigError("optimizer", problem, "Known are torch's own SGD, Adam and AdamW")
    for option, wanted in REFUSED.items():
        if (found := group.get(option, wanted)) != wanted:
            problem = f"is {name} with {option}={found}, whose updates cannot be taken apart"
            raise ConfigError("optimizer", problem, f"Set {option}={wanted}")
    decay = float(group["weight_decay"])
    if kind == "sgd":
        momentum, nesterov = float(group["momentum"]), bool(group["nesterov"])
        return OptimizerConfig(momentum=momentum, nesterov=nesterov, weight_decay=decay)
    beta1, beta2 = map(float, group["betas"])
    shrinks = kind == "adamw" or group.get("decoupled_weight_decay")
    return OptimizerConfig(
        kind="adamw" if shrinks else "adam",
        weight_decay=decay,
        beta1=beta1,
        beta2=beta2,
        epsilon=float(group["eps"]),
    )


def group_of(
    optimizer: torch.optim.Optimizer, units: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Any]]:
    """The parameter group of each unit; raises ``ConfigError`` for one that has none."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in units.items():
        if id(parameter) not in groups or not parameter.requires_grad:
            problem = "is no parameter that the optimizer trains"
            raise ConfigError("units", f"{name} {problem}", "Leave it out of units")
    return {name: groups[id(parameter)] for name, parameter in units.items()}


@dataclass(frozen=True)
class Coming:
    """An update before it is taken: per unit its settings, and what it inherits."""

    optimizer: torch.optim.Optimizer
    units: Mapping[str, nn.Parameter]
    groups: dict[str, dict[str, Any]]
    configs: dict[str, OptimizerConfig]
    legacies: dict[str, Legacy]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, units: Mapping[str, nn.Parameter]) -> "Coming":
        groups = group_of(optimizer, units)
        configs = {name: config_of(optimizer, group) for name, group in groups.items()}
        legacies = {}
        for name, config in configs.items():
            own, states = {name: units[name]}, states_of(config)
            moments = state_of(optimizer, own, states[0]) if states else {}
            legacies[name] = inherit(config, own, moments)
        return cls(optimizer, units, groups, configs, legacies)

    @property
    def learning_rate(self) -> float:
        """The first unit's."""
        return float(next(iter(self.groups.values()))["lr"])

    @property
    def rounded_most(self) -> OptimizerConfig:
        """The settings that round weights most often: AdamW's with decay."""
        return max(self.configs.values(), key=lambda c: (c.kind == "adamw", c.weight_decay))

    def taken(self, clip: float) -> Split:
        """The update after it was taken; units of other groups differ by their preconditioner."""
        parts = {name: self.part(name, clip) for name in self.units}
        scale = max((part.scale for part in parts.values()), key=abs)
        preconditioner, carry = None, None
        if any(part.preconditioner or part.scale != scale for part in parts.values()):
            shares = {n: part.scale / scale if scale else 1.0 for n, part in parts.items()}
            preconditioner = {
                name: self.filled(part.preconditioner, name, 1.0) * shares[name]
                for name, part in parts.items()
            }
        if any(part.carry for part in parts.values()):
            carry = {name: self.filled(part.carry, name, 0.0) for name, part in parts.items()}
        return Split(scale, preconditioner, carry)

    def part(self, name: str, clip: float) -> Split:
        own = {name: self.units[name]}
        counted = self.optimizer.state[self.units[name]].get("step", 1)
        return split(
            self.configs[name],
            self.legacies[name],
            state_of(self.optimizer, own, "exp_avg_sq"),
            learning_rate=float(self.groups[name]["lr"]),
            clip=clip,
            step=int(counted) - 1,
        )

    def filled(self, tensors: Tensors | None, name: str, value: float) -> Tensor:
        return tensors[name] if tensors else torch.full_like(self.units[name], value)


def rescaling(given_P: Tensor, summed_P: Tensor) -> float:
    """By what the gradients were multiplied since the backward pass, by least squares."""
    given_P, summed_P = given_P.double(), summed_P.double()
    size = float(summed_P @ summed_P)
    found = float(given_P @ summed_P) / size if size else 1.0
    return 1.0 if abs(found - 1) < SAME else found


def norm_of(optimizer: torch.optim.Optimizer) -> float:
    """Of the gradients of all parameters that the optimizer trains, as they stand."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    grads = [p.grad for p in parameters if p.grad is not None]
    return math.sqrt(sum(float(norm) ** 2 for norm in map(Tensor.norm, grads)))
