"""What a loop does to gradients between ``backward`` and ``step``: a multiplier for each entry.

Clipping of the total norm multiplies all gradients by one number, which least squares finds
(``capture.custom_loop.update``). Clipping by value, or of one parameter group, multiplies entries
by different numbers. These cannot be fitted: a unit that was captured wrongly by a factor would
look like one that was clipped. So the operations themselves are watched, and the audit compares the
sum of the datums' gradients with the gradient before them.

Clipping by value replaces an entry G of the summed gradient by ±c. All datums share the multiplier
m = ±c / G of this entry, as they share the factor of the total norm: given m, the update is linear
in the datums' gradients, a datum's share of it is m · its gradient, and the shares add up to the
update. Where G is 0, clipping changes nothing and m = 1, so nothing is divided by 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from capture.custom_loop.ranks.sharding import HasGradient, gathered, local_part

Number = Tensor | float
"""A float, or a tensor of one number, so that nothing waits for the device."""
Multiplier = Tensor | float
"""One number for a unit, or a tensor of its shape."""
DIVIDES = frozenset(
    (Tensor.div_, Tensor.divide_, Tensor.true_divide_, torch._foreach_div_)  # pyright: ignore
)
MULTIPLIES = DIVIDES | frozenset(
    (Tensor.mul_, Tensor.multiply_, torch._foreach_mul_)  # pyright: ignore
)
CLAMPS = frozenset(
    (
        *(Tensor.clamp_, Tensor.clip_, Tensor.clamp_min_, Tensor.clamp_max_),
        *(torch.clamp_, torch.clip_, torch.clamp_min_, torch.clamp_max_),
        *(torch._foreach_clamp_min_, torch._foreach_clamp_max_),  # pyright: ignore
        *(torch._foreach_minimum_, torch._foreach_maximum_),  # pyright: ignore
    )
)
WATCHED = MULTIPLIES | CLAMPS
"""Operations of torch that change their first argument in place; ``_foreach_``: each of a list."""


@dataclass
class Change:
    """What was done to the gradient of one unit."""

    numbers: list[Number] = field(default_factory=list)
    """Factors by which all its entries were multiplied."""
    before: Tensor | None = None
    """The gradient before its entries were first changed unequally; None if they never were."""
    since: list[Number] = field(default_factory=list)
    """Factors by which all its entries were multiplied after that."""

    @property
    def total(self) -> float:
        return math.prod(map(float, self.numbers + self.since))


class GradientChanges:
    """The changes of the gradients of all units since they were last zero."""

    def __init__(self, holders: Mapping[str, HasGradient]) -> None:
        """``holders``: what holds the gradient that the optimizer is given, by unit."""
        self.holders = holders
        self.found: dict[str, Change] = {}
        self.names: dict[int, str] = {}
        """Units by the address of their gradients, as far as these were met."""
        self.is_open = False
        """Whether a backward pass has begun, after which operations are watched until the step."""

    def clear(self) -> None:
        self.found, self.names, self.is_open = {}, {}, False

    def note(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Note what a ``WATCHED`` function is about to do."""
        if not self.is_open or not args:
            return
        targets = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        named = {name: x for x in targets if (name := self.name_of(x)) is not None}
        if not named:
            return
        by = args[1] if len(args) > 1 else kwargs.get("other")
        if func in MULTIPLIES and is_number(by) and "rounding_mode" not in kwargs:
            number = multiplier_of(by, divides=func in DIVIDES)
            for name in named:
                change = self.found.setdefault(name, Change())
                (change.numbers if change.before is None else change.since).append(number)
            return
        for name, grad in named.items():
            change = self.found.setdefault(name, Change())
            if change.before is None and not grad.is_sparse:
                change.before = grad.detach().clone()

    def unscale(self, inverse: float) -> None:
        """Note that a ``GradScaler`` multiplies all gradients by ``inverse``: no change."""
        for change in self.found.values():
            if change.before is not None:
                change.before = change.before * inverse

    def name_of(self, x: object) -> str | None:
        """Return the unit whose whole gradient a tensor is."""
        if not isinstance(x, Tensor) or x.requires_grad:
            return None
        if not local_part(x).numel():  # all empty shards have the same address
            return next((name for name, holder in self.holders.items() if holder.grad is x), None)
        place = address(x)
        if place not in self.names:
            grads = {name: holder.grad for name, holder in self.holders.items()}
            self.names = {address(g): name for name, g in grads.items() if g is not None}
        name = self.names.get(place)
        grad = None if name is None else self.holders[name].grad
        # A part of a gradient may begin at its address, and its transposed view does.
        if grad is None or grad.shape != x.shape or address(grad) != place:
            return None
        return name if grad.is_sparse or grad.stride() == x.stride() else None

    def resolve(self) -> None:
        """Make all changes whole floats and tensors; none if all gradients got one number.

        With shards it is a collective, which all ranks must call.
        """
        if not self.found:
            return
        used = [name for name, holder in self.holders.items() if holder.grad is not None]
        own = [self.found.get(name, Change()) for name in used]
        if len({tuple(map(id, each.numbers)) for each in own}) <= 1 and not any(
            each.before is not None for each in own
        ):
            self.found = {}
        for change in self.found.values():
            change.numbers = [float(gathered(number)) for number in change.numbers]
            change.since = [float(gathered(number)) for number in change.since]
            change.before = None if change.before is None else gathered(change.before)


def address(x: Tensor) -> int:
    """Return where in memory a tensor's numbers (on this rank) begin."""
    own = local_part(x)
    return own._values().data_ptr() if own.is_sparse else own.data_ptr()


def is_number(x: object) -> bool:
    return isinstance(x, int | float) or (isinstance(x, Tensor) and x.numel() == 1)


def multiplier_of(by: Any, *, divides: bool) -> Number:
    """Return the operand of a product or quotient as a multiplier; a tensor stays one."""
    if isinstance(by, Tensor):
        return by.detach().reciprocal() if divides else by.detach().clone()
    return 1 / by if divides else float(by)


def undo(
    given: Mapping[str, Tensor], changes: Mapping[str, Change], pending_scale: float
) -> tuple[dict[str, Tensor], dict[str, Multiplier]]:
    """Return the gradients without the changes that differ, and multipliers that make them.

    A number that multiplied all gradients alike is left in them. Units without such changes have no
    multiplier. ``given``: the gradients that the optimizer is given; ``pending_scale``: by what it
    has yet to divide those that it has.
    """
    totals = {name: changes[name].total if name in changes else 1.0 for name in given}
    is_common = len(set(totals.values())) == 1
    grads, multipliers = dict(given), dict[str, Multiplier]()
    for name, change in changes.items():
        total = 1.0 if is_common else totals[name]
        unequal = None if change.before is None else given_if_equal(change, pending_scale)
        if unequal is None or torch.equal(unequal, given[name]):
            if total not in (0.0, 1.0):
                grads[name], multipliers[name] = given[name] / total, total
        elif total:
            grads[name] = unequal / total
            by = given[name] / grads[name]
            multipliers[name] = torch.where(grads[name] == 0, 1.0, by)
    return grads, multipliers


def given_if_equal(change: Change, pending_scale: float) -> Tensor:
    """Return the gradient that the optimizer would be given, had all entries been changed alike."""
    assert change.before is not None
    scale = math.prod(map(float, change.since)) / pending_scale
    return change.before if scale == 1 else change.before * scale
