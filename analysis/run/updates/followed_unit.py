"""One parameter of a custom training loop and its optimizer, followed through recorded gradients.

The optimizer takes its steps again, in float64, on this parameter alone: of the class and with the
settings that ``run.yaml`` names, from the state that a checkpoint holds.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from analysis.run.custom_loop import UnitSettings
from capture.errors import RunError
from capture.optim.lifetime import AppliedUpdate
from capture.optim.optimizer import make_optimizer
from capture.optim.rules import UnitUpdate, find_rule
from capture.optim.rules.finding import class_of
from capture.optim.rules.linear_rule import LinearRule

STATE = "optimizer/"
SPEED = ("fused", "foreach", "capturable")
"""Options that choose an implementation, not a formula."""


@dataclass(frozen=True, eq=False)
class FollowedUnit:
    """A parameter and its optimizer, float64."""

    parameter: nn.Parameter
    optimizer: torch.optim.Optimizer
    rule: LinearRule

    @classmethod
    def of(
        cls, settings: UnitSettings, checkpoint: Mapping[str, Tensor], unit: str, steps: int
    ) -> "FollowedUnit":
        """Return the unit as a checkpoint after ``steps`` steps has it."""
        parameter = nn.Parameter(checkpoint[unit].double())
        optimizer = built_optimizer(settings, parameter)
        rule = find_rule(optimizer)
        assert isinstance(rule, LinearRule)
        kept = {
            key.removeprefix(STATE).removesuffix(f"/{unit}"): value
            for key, value in checkpoint.items()
            if key.startswith(STATE) and key.endswith(f"/{unit}")
        }
        count = int(kept.pop("step", torch.tensor(steps)))
        if kept or "step" in optimizer.state[parameter]:
            state = {key: exact(value) for key, value in kept.items()}
            optimizer.state[parameter] |= state | {"step": torch.tensor(float(count))}
        return cls(parameter, optimizer, rule)

    @property
    def weight(self) -> Tensor:
        return self.parameter.detach()

    def step(self, learning_rate: float, clip: float, gradient: Tensor) -> AppliedUpdate:
        """Take a step with ``clip`` times a gradient, and return its coefficients."""
        group, state = self.optimizer.param_groups[0], self.optimizer.state
        if group["lr"] is not None:
            group["lr"] = learning_rate
        given, weight = clip * gradient, self.weight.clone()
        before = {k: state[self.parameter][k].clone() for k in self.reads()}
        self.parameter.grad = given.clone()
        self.optimizer.step()
        update = UnitUpdate(weight, given, group, before, state[self.parameter])
        applied = self.rule.coefficients(update)
        return replace(applied, clip=applied.clip * clip)

    def reads(self) -> list[str]:
        state = self.optimizer.state[self.parameter]
        return [key for key in self.rule.reads if isinstance(state.get(key), Tensor)]


def exact(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value.clone()


def built_optimizer(settings: UnitSettings, parameter: nn.Parameter) -> torch.optim.Optimizer:
    """Return an optimizer of one parameter with a group's settings."""
    config = settings.optimizer
    if config.kind != "other":
        return make_optimizer([parameter], config, 1.0)
    found = class_of(config.name)
    assert found is not None
    options = dict(settings.options)
    # Adafactor of transformers takes no learning rate if it finds its own.
    rate = None if options.get("relative_step") else 1.0
    options |= {key: False for key in SPEED if key in options}
    known = inspect.signature(found[0]).parameters  # a group may have more: initial_lr
    accepted = {key: value for key, value in options.items() if key in known}
    return found[0]([parameter], lr=rate, **accepted)


def require_followed(settings: UnitSettings, unit: str, uri: str) -> None:
    """Raise ``RunError`` for an optimizer that cannot be followed.

    It is another one than run.yaml describes, its library is not installed, or its updates have no
    coefficient for each entry.
    """
    config = settings.optimizer
    if config.kind != "other":
        return
    try:
        optimizer = class_of(config.name)
        if optimizer is not None:
            built_optimizer(settings, nn.Parameter(torch.zeros(1)))
    except ImportError as error:
        problem = f"trained {unit} with {config.name}, whose library is not installed"
        raise RunError(uri, problem, "Install transformers") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        problem = f"has settings of {config.name} in run.yaml that it does not take"
        raise RunError(uri, problem, "Run: ontogeny verify") from error
    if optimizer is None:
        reason = "mixes the entries of a matrix" if config.name == "Muon" else "states its own rule"
        problem = f"trained {unit} with {config.name}, which {reason}: a gradient's later effect "
        problem += "is not defined by one number an entry"
        remedy = "Recorded shifts of its steps (run.shifts) and gradients (run.gradient) are exact"
        raise RunError(uri, problem, remedy)
