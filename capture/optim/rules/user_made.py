"""Optimizers that state their own rule, by two methods.

An optimizer of any class is recorded if it has

    def preconditioner(self, update: UnitUpdate) -> Tensor | float
    def carry(self, update: UnitUpdate) -> Tensor | float

such that the change of a parameter is preconditioner ⊙ gradient + carry. They are called after each
step, for each captured parameter with a gradient. The audit compares the result with the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from capture.errors import ConfigError
from capture.optim.rules.unit_update import UnitParts, UnitUpdate


@runtime_checkable
class StatesItsRule(Protocol):
    """An optimizer with the two methods."""

    def preconditioner(self, update: UnitUpdate) -> Tensor | float: ...

    def carry(self, update: UnitUpdate) -> Tensor | float: ...


@dataclass(frozen=True)
class UserRule:
    """The rule of an optimizer that states its own."""

    optimizer: StatesItsRule
    reads: None = None
    problem: str = "states its preconditioner and carry, but not how momentum keeps a gradient"

    @property
    def name(self) -> str:
        return type(self.optimizer).__name__

    def decays(self, group: Mapping[str, Any]) -> bool:
        return bool(group.get("weight_decay", 0))

    @torch.no_grad()
    def parts(self, update: UnitUpdate) -> UnitParts:
        by = self.checked("preconditioner", self.optimizer.preconditioner(update), update)
        carry = self.checked("carry", self.optimizer.carry(update), update)
        if not isinstance(carry, Tensor):
            carry = torch.full_like(update.weight, carry) if carry else None
        if isinstance(by, Tensor):
            return UnitParts(1.0, by, carry)
        return UnitParts(by, None, carry)

    def checked(self, method: str, found: Any, update: UnitUpdate) -> Tensor | float:
        """Return a method's result; raise ``ConfigError`` unless it fits the parameter."""
        if isinstance(found, Tensor):
            if found.shape == update.weight.shape:
                return found.detach().to(update.weight.dtype)
            got = f"a tensor {tuple(found.shape)}"
        elif isinstance(found, int | float):
            return float(found)
        else:
            got = type(found).__name__
        shape = tuple(update.weight.shape)
        problem = f"{self.name}.{method} returned {got} for a parameter {shape}"
        raise ConfigError("optimizer", problem, "Return a tensor of its shape, or a number")
