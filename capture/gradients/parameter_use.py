"""One call that used captured parameters, and the factors that follow from it.

Shapes: N datum, T entry of a datum (all axes between datum and features, flattened, the window
first), I input width, O output width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from capture.gradients.attention import datums_first
from capture.gradients.factors import Factor
from capture.gradients.torch_functions import NotSplittable, ParameterRole, TorchCall
from capture.gradients.window_axis import Axis


@dataclass
class ParameterUse:
    """One call that used captured parameters; its δ arrives during the backward pass."""

    func: str
    """Name of the torch function."""
    roles: dict[str, ParameterRole]
    """Unit name → the form of its gradient."""
    call: TorchCall
    num_datums: int
    first_axis: int
    """Length of the output's first axis in the model."""
    shape: torch.Size
    """Shape of the output, features last."""
    device: torch.device
    axis: Axis = None
    """The window among ``middle``; None if unknown or if a datum has one entry."""
    positions_first: bool = False
    """Whether the output is [L, N, E] or [L · N, E] in the model; its shape has datums first."""
    is_shared: bool = False
    """Whether all datums use the same output; its shape has an axis N all the same."""
    delta: Tensor | None = None
    """Loss gradient at the output, features last; None before the backward pass."""

    @property
    def middle(self) -> tuple[int, ...]:
        """Lengths of the axes between datum and features, see ``capture.gradients.window_axis``."""
        return middle_axes(self.shape, self.num_datums)

    @property
    def per_position(self) -> int:
        """Number of entries of each position of the window."""
        middle, axis = self.middle, self.axis
        return 1 if axis is None else math.prod(middle) // middle[axis]

    def keep_delta(self, delta: Tensor) -> None:
        delta = delta.movedim(self.call.feature_axis, -1)
        self.delta = datums_first(delta, self.num_datums) if self.positions_first else delta

    def add_delta(self, delta: Tensor) -> None:
        """Add a part of δ; an output that all datums share may meet the batch in several places."""
        before = self.delta
        self.keep_delta(delta)
        if before is not None and self.delta is not None:
            self.delta = before + self.delta

    def factor(self, role: ParameterRole, cast: Callable[[Tensor], Tensor]) -> Factor:
        """Return the factor of the parameter with this role; ``cast`` converts tensors' types."""
        # Without δ the loss does not depend on the output, so the gradient is 0.
        delta = torch.zeros(self.shape, device=self.device) if self.delta is None else self.delta
        delta_NTO, a = self.by_datum(cast(delta)), self.call.a
        if any(role.absent):  # the gradient of rows that were not passed is 0
            delta_NTO = F.pad(delta_NTO, role.absent)
        if role.kind == "rows":
            assert a is not None
            token_NT = self.by_datum(a.expand(self.shape[:-1])[..., None]).squeeze(-1)
            if self.call.padding is not None:  # torch zeroes this row's gradient, so do we
                delta_NTO = delta_NTO * (token_NT != self.call.padding)[..., None]
            return Factor("rows", delta_NTO, None, False, token_NT, self.per_position)
        if role.kind == "sum" or a is None:
            return Factor("sum", delta_NTO, per_position=self.per_position)
        if self.is_shared and a.shape[0] != 1:
            a = a[None]
        a = a.expand(self.num_datums, *a.shape[1:]) if a.shape[0] == 1 else a
        a_NTI = self.by_datum(cast(a))
        return Factor(role.kind, delta_NTO, a_NTI, role.transposed, None, self.per_position)

    def by_datum(self, x: Tensor) -> Tensor:
        """Reshape [N, …, features] or [N · T, features] to [N, T, features], the window first."""
        # The datum is the outermost axis in both, so N rows of equal length fall apart in the right
        # order. With the window first, entry e is at position e // per_position.
        if self.axis:  # the first axis needs no move; a move would copy
            x = x.reshape(self.num_datums, *self.middle, x.shape[-1]).movedim(1 + self.axis, 1)
        return x.reshape(self.num_datums, -1, x.shape[-1])


def middle_axes(shape: Sequence[int], num_datums: int) -> tuple[int, ...]:
    """Return the lengths of the axes between datum and features of a shape, features last."""
    return shape[0] // num_datums, *shape[1:-1]


def require_datums(function: str, shape: torch.Size, num_datums: int) -> None:
    """Raise ``NotSplittable`` unless the first axis of an output can be the datum.

    ``function``: name of the call; ``shape``: of its output, features last.
    """
    if len(shape) > 1 and not shape[0] % num_datums:
        return
    found = f"no multiple of {num_datums} datums"
    if len(shape) > 2 and shape[1] == num_datums:
        found = (
            f"with positions before the {num_datums} datums (its module may take batch_first=True)"
        )
    raise NotSplittable(f"{function} on {tuple(shape)}, {found}")
