"""Find the axis of datums after ``x[index]``."""

from typing import Any

import torch
from torch import Tensor

LOST = -1
"""Rows were chosen, sorted or mixed, so that no axis has one datum after the other."""


def axis_after_index(x: Tensor, index: Any, axis: int) -> int:
    """Return where an axis of ``x`` is in ``x[index]``; ``LOST`` if its rows were chosen."""
    if axis == LOST:
        return LOST
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(axes_used(item) for item in items)
    if Ellipsis not in [item for item in items if not isinstance(item, Tensor)]:
        items.append(Ellipsis)
    own, new = 0, 0
    advanced: list[int] = []
    for item in items:
        if item is None:
            new += 1
        elif item is Ellipsis:
            skipped = x.dim() - used
            if own <= axis < own + skipped:
                return new + axis - own
            own, new = own + skipped, new + skipped
        elif isinstance(item, slice):
            if own == axis:
                return new if is_whole(item, x.shape[axis]) else LOST
            own, new = own + 1, new + 1
        elif isinstance(item, int) and not isinstance(item, bool):
            if own == axis:
                return LOST
            own += 1
        else:
            taken = axes_used(item)
            if own <= axis < own + taken:
                return new if counts(item, x.shape[axis]) and not advanced else LOST
            own += taken
            if not advanced:
                new += torch.as_tensor(item).dim() - taken + 1
            advanced.append(own)
    return LOST


def axes_used(item: Any) -> int:
    """Return how many axes an item of an index takes."""
    if item is None or item is Ellipsis:
        return 0
    if isinstance(item, Tensor) and item.dtype == torch.bool:
        return item.dim()
    return 1


def is_whole(item: slice, size: int) -> bool:
    return item.indices(size) == (0, size, 1)


def counts(item: Any, size: int) -> bool:
    """Return whether an index takes each row once, in order."""
    ids = torch.as_tensor(item)
    if ids.dtype == torch.bool or ids.numel() != size or ids.shape[:1] != (size,):
        return False
    return bool((ids.flatten() == torch.arange(size, device=ids.device)).all())
