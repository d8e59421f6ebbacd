"""Dense shifts from factors, and factors of part of a batch or of several batches.

``uses`` is a unit's list of factors, one per use in the forward pass.
Shapes: N datum, T position, R row of a unit, C column, I input width, O output width, V vocabulary,
S entries of a unit, P all captured parameters in the layout's order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout
from capture.gradients.memo import Memo


def write_shifts(uses: list[Factor], scale: float, out_NS: Tensor) -> None:
    """Write each datum's shift of one unit, flattened and summed over its uses, into ``out_NS``.

    ``scale``: multiplier from gradient to shift (−lr · clip), before preconditioning. The datum's
    share of the batch's loss is already part of δ.
    """
    for number, use in enumerate(uses):
        # The first use overwrites what the buffer held before; later uses add to it.
        if use.kind == "outer":
            left_NTR, right_NTC = use.sides
            out_NRC = out_NS.view(len(out_NS), left_NTR.shape[2], right_NTC.shape[2])
            out_NRC.baddbmm_(left_NTR.transpose(1, 2), right_NTC, beta=min(number, 1), alpha=scale)
        elif use.kind == "rows":
            add_rows(use, scale, out_NS if number else out_NS.zero_())
        else:
            product_NTO = use.delta_NTO if use.a_NTI is None else use.delta_NTO * use.a_NTI
            share_NS = out_NS.clone() if number else out_NS
            torch.sum(product_NTO, 1, out=share_NS).mul_(scale)
            if number:
                out_NS += share_NS


def add_rows(use: Factor, scale: float, out_NS: Tensor) -> None:
    """Add each position's shift to the row that it looked up, for every datum."""
    assert use.token_NT is not None
    out_NVO = out_NS.view(len(out_NS), -1, use.delta_NTO.shape[2])
    for out_VO, token_T, delta_TO in zip(out_NVO, use.token_NT, use.delta_NTO, strict=True):
        out_VO.index_add_(0, token_T, delta_TO, alpha=scale)  # a token may occur more than once


def slice_datums(factors: Factors, start: int, stop: int) -> Factors:
    """Return views of the factors of datums ``start`` to ``stop`` of the batch."""
    return map_factors(factors, lambda factor: factor[start:stop])


def join_datums(pieces: Sequence[Factors]) -> Factors:
    """Concatenate the factors of a batch's parts along N, in order; inverse of ``slice_datums``."""
    if len(pieces) == 1:
        return pieces[0]
    uses = {name: zip(*(piece[name] for piece in pieces), strict=True) for name in pieces[0]}
    # Units that share an input (queries, keys, values) keep sharing it, so it is stored once.
    cat = Memo(lambda *parts: torch.cat(parts))
    return {name: [join_factors(parts, cat) for parts in own] for name, own in uses.items()}


def join_factors(parts: Sequence[Factor], cat: Callable[..., Tensor]) -> Factor:
    """Concatenate the factors of one use along N."""
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
    """Return the sum over datums of all shifts, [P], without forming any datum's shift.

    ``preconditioner``: by unit, a further multiplier for each entry; None means 1.
    """
    out_P = torch.empty(layout.size, device=next(iter(factors.values()))[0].delta_NTO.device)
    for name, out_S in zip(layout.names, out_P.split(layout.sizes), strict=True):
        write_sum(factors[name], scale, out_S, preconditioner[name] if preconditioner else None)
    return out_P


def write_sum(
    uses: list[Factor], scale: float, out_S: Tensor, preconditioner: Tensor | None
) -> None:
    """Write the sum over datums of one unit's shifts into ``out_S``."""
    # A sum over datums of sums over positions: treat all positions as those of a single datum.
    joined = [use.map_tensors(lambda factor: factor.flatten(0, 1)[None]) for use in uses]
    write_shifts(joined, scale, out_S[None])
    if preconditioner is not None:
        out_S *= preconditioner.reshape(-1)


def map_factors(factors: Factors, change: Callable[[Tensor], Tensor]) -> Factors:
    """Return a copy with ``change`` applied to every tensor of every factor."""
    return {name: [use.map_tensors(change) for use in uses] for name, uses in factors.items()}
