"""From factors to dense shifts: one row a datum, one column a captured parameter.

Shapes: N datum, T position, I input width, O output width, S entries of a unit,
P all captured parameters in order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout
from capture.gradients.memo import Memo


def write_shifts(uses: list[Factor], scale: float, out_NS: Tensor) -> None:
    """Every datum's shift of one unit, flattened, into ``out_NS``: the sum over the unit's uses.

    ``scale`` is what a gradient becomes a shift by; δ already holds the datum's share of the loss.
    """
    for place, use in enumerate(uses):
        if use.kind == "outer":
            left_NTR, right_NTC = use.sides
            out_NRC = out_NS.view(len(out_NS), left_NTR.shape[2], right_NTC.shape[2])
            out_NRC.baddbmm_(left_NTR.transpose(1, 2), right_NTC, beta=min(place, 1), alpha=scale)
        elif use.kind == "rows":
            add_rows(use, scale, out_NS if place else out_NS.zero_())
        else:
            product_NTO = use.delta_NTO if use.a_NTI is None else use.delta_NTO * use.a_NTI
            share_NS = out_NS.clone() if place else out_NS
            torch.sum(product_NTO, 1, out=share_NS).mul_(scale)
            if place:
                out_NS += share_NS


def add_rows(use: Factor, scale: float, out_NS: Tensor) -> None:
    """Add each position's shift to the row that it looked up."""
    assert use.token_NT is not None
    out_NVO = out_NS.view(len(out_NS), -1, use.delta_NTO.shape[2])
    for out_VO, token_T, delta_TO in zip(out_NVO, use.token_NT, use.delta_NTO, strict=True):
        out_VO.index_add_(0, token_T, delta_TO, alpha=scale)


def slice_datums(factors: Factors, start: int, stop: int) -> Factors:
    """The factors of some datums of the batch (views)."""
    return map_factors(factors, lambda factor: factor[start:stop])


def join_datums(pieces: Sequence[Factors]) -> Factors:
    """The factors of a batch from those of its parts, in order: undoes ``slice_datums``."""
    if len(pieces) == 1:
        return pieces[0]
    uses = {name: zip(*(piece[name] for piece in pieces), strict=True) for name in pieces[0]}
    cat = Memo(lambda *parts: torch.cat(parts))
    return {name: [join_factors(parts, cat) for parts in own] for name, own in uses.items()}


def join_factors(parts: Sequence[Factor], cat: Callable[..., Tensor]) -> Factor:
    inputs = [part.a_NTI for part in parts if part.a_NTI is not None]
    tokens = [part.token_NT for part in parts if part.token_NT is not None]
    return replace(
        parts[0],
        delta_NTO=cat(*(part.delta_NTO for part in parts)),
        a_NTI=cat(*inputs) if inputs else None,
        token_NT=cat(*tokens) if tokens else None,
    )


def sum_shifts(
    factors: Factors,
    layout: Layout,
    scale: float,
    preconditioner: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The sum over datums of all shifts, [P], without any datum's own."""
    out_P = torch.empty(layout.size, device=next(iter(factors.values()))[0].delta_NTO.device)
    for name, out_S in zip(layout.names, out_P.split(layout.sizes), strict=True):
        write_sum(factors[name], scale, out_S, preconditioner[name] if preconditioner else None)
    return out_P


def write_sum(
    uses: list[Factor], scale: float, out_S: Tensor, preconditioner: Tensor | None
) -> None:
    """The sum over datums of one unit's shifts into ``out_S``: all their positions as one's."""
    joined = [use.map_tensors(lambda factor: factor.flatten(0, 1)[None]) for use in uses]
    write_shifts(joined, scale, out_S[None])
    if preconditioner is not None:
        out_S *= preconditioner.reshape(-1)


def map_factors(factors: Factors, change: Callable[[Tensor], Tensor]) -> Factors:
    return {name: [use.map_tensors(change) for use in uses] for name, uses in factors.items()}
