"""One update of one parameter: what a rule reads, and the parts that it returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from capture.optim.lifetime import AppliedUpdate
from capture.optim.side_map import SideMap


def rate_or_one(learning_rate: Any) -> float:
    """Return a group's learning rate; 1.0 for None, as the optimizer finds its own (Adafactor)."""
    return 1.0 if learning_rate is None else float(learning_rate)


@dataclass(frozen=True, eq=False)
class UnitUpdate:
    """One update of one parameter, after the optimizer has changed its state."""

    weight: Tensor
    """The parameter before the update."""
    gradient: Tensor
    """The gradient that the optimizer was given, dense."""
    group: Mapping[str, Any]
    """Settings of its parameter group."""
    before: Mapping[str, Any]
    """The optimizer's state of the parameter before the update; empty at the first."""
    after: Mapping[str, Any]
    """The optimizer's state of the parameter after the update."""

    @property
    def learning_rate(self) -> float:
        """``lr`` of the group; 1.0 if the optimizer finds its own."""
        return rate_or_one(self.group["lr"])

    @property
    def count(self) -> int:
        """Number of this update of the parameter, from 1."""
        return int(self.after["step"])


@dataclass(frozen=True, eq=False)
class UnitParts:
    """An update as scale · preconditioner ⊙ map(gradient) + carry."""

    scale: float
    preconditioner: Tensor | None = None
    """None means 1."""
    carry: Tensor | None = None
    """None means 0."""
    side_map: SideMap | None = None
    """None means the identity."""


class Rule(Protocol):
    """How a kind of optimizer updates one parameter."""

    @property
    def name(self) -> str:
        """Name of the optimizer."""
        ...

    @property
    def reads(self) -> tuple[str, ...] | None:
        """States that the rule reads as they were before the update; None: all."""
        ...

    @property
    def problem(self) -> str:
        """Why lifetime shifts are not defined; empty if they are."""
        ...

    def decays(self, group: Mapping[str, Any]) -> bool:
        """Return whether the optimizer multiplies the weights, and then adds to them."""
        ...

    def parts(self, update: UnitUpdate) -> UnitParts:
        """Return the parts of an update."""
        ...


@torch.no_grad()
def parts_of(applied: AppliedUpdate, update: UnitUpdate, moment: Tensor | None) -> UnitParts:
    """Return the parts of an update with these coefficients.

    ``moment``: before the update; None if it was 0.
    """
    by, carry = applied.preconditioner, None
    if applied.l2:
        carry = update.weight * (applied.rate * applied.l2)
    if applied.remembered and moment is not None:
        carry = plus(carry, moment * (applied.rate * applied.remembered))
    if carry is not None and isinstance(by, Tensor):
        carry = carry.mul_(by)
    if applied.added and moment is not None:
        carry = plus(carry, moment * applied.added)
    if applied.kept != 1:
        carry = plus(carry, update.weight * (applied.kept - 1))
    scale, preconditioner = applied.rate * applied.clip, by if isinstance(by, Tensor) else None
    return UnitParts(scale, preconditioner, carry)


def plus(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one.add_(other)
