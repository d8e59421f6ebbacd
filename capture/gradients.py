"""From factors to dense shifts: one row a datum, one column a captured parameter.

Shapes: N datum, T position, I input width, O output width, S entries of a unit,
P all captured parameters in order.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from capture.factors import Factor, Factors


@dataclass(frozen=True)
class Layout:
    """Where each unit lies among the P captured parameters."""

    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, units: Mapping[str, Tensor]) -> "Layout":
        return cls({name: tuple(parameter.shape) for name, parameter in units.items()})

    @property
    def names(self) -> list[str]:
        return list(self.shapes)

    @cached_property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes.values()]

    @cached_property
    def offsets(self) -> list[int]:
        """First column of each unit, and P at the end."""
        return [0, *itertools.accumulate(self.sizes)]

    @property
    def size(self) -> int:
        return self.offsets[-1]

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A copy of one tensor a unit, as [P]."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.shapes])


def write_shifts(uses: list[Factor], scale: float, out_NS: Tensor) -> None:
    """Every datum's shift of one unit, flattened, into ``out_NS``: the sum over the unit's uses.

    ``scale`` is -lr · clip; δ already holds the datum's share of the mean loss.
    """
    for place, use in enumerate(uses):
        delta_NTO, a_NTI = use.delta_NTO, use.a_NTI
        if use.kind == "outer":
            assert a_NTI is not None
            out_NOI = out_NS.view(len(out_NS), delta_NTO.shape[2], a_NTI.shape[2])
            out_NOI.baddbmm_(delta_NTO.transpose(1, 2), a_NTI, beta=min(place, 1), alpha=scale)
        else:
            product_NTO = delta_NTO if a_NTI is None else delta_NTO * a_NTI
            share_NS = out_NS.clone() if place else out_NS
            torch.sum(product_NTO, 1, out=share_NS).mul_(scale)
            if place:
                out_NS += share_NS


def slice_datums(factors: Factors, start: int, stop: int) -> Factors:
    """The factors of some datums of the batch (views)."""
    return mapped(factors, lambda factor: factor[start:stop])


def join_datums(pieces: Sequence[Factors]) -> Factors:
    """The factors of a batch from those of its parts, in order: undoes ``slice_datums``."""
    if len(pieces) == 1:
        return pieces[0]
    uses = {name: zip(*(piece[name] for piece in pieces), strict=True) for name in pieces[0]}
    return {name: [join(parts) for parts in own] for name, own in uses.items()}


def join(parts: Sequence[Factor]) -> Factor:
    delta_NTO = torch.cat([part.delta_NTO for part in parts])
    inputs = [part.a_NTI for part in parts if part.a_NTI is not None]
    return replace(parts[0], delta_NTO=delta_NTO, a_NTI=torch.cat(inputs) if inputs else None)


def sum_shifts(
    factors: Factors,
    layout: Layout,
    scale: float,
    preconditioner: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The sum over datums of all shifts, [P], without any datum's own."""
    joined = mapped(factors, lambda factor: factor.flatten(0, 1)[None])
    out_P = torch.empty(layout.size, device=next(iter(factors.values()))[0].delta_NTO.device)
    for name, unit in zip(layout.names, out_P.split(layout.sizes), strict=True):
        write_shifts(joined[name], scale, unit[None])
        if preconditioner:
            unit *= preconditioner[name].flatten()
    return out_P


def mapped(factors: Factors, change: Callable[[Tensor], Tensor]) -> Factors:
    return {name: [use.mapped(change) for use in uses] for name, uses in factors.items()}
