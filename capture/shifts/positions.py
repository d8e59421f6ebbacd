"""The position of the window that contributed most to each of some shifts.

Shapes: N datum, T position, M entry, K entry of one unit, R output of a factor, C its input.
"""

import torch
from torch import Tensor

from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout


def strongest_positions(
    factors: Factors, layout: Layout, slot_M: Tensor, column_M: Tensor
) -> Tensor:
    """Return for each entry the position whose contribution is largest in absolute value, [M].

    Ties go to the first position.
    """
    offsets = torch.tensor(layout.offsets, device=column_M.device)
    unit_M = torch.searchsorted(offsets, column_M, right=True) - 1
    position_M = torch.empty_like(column_M)
    for unit in unit_M.unique().tolist():
        here_K = (unit_M == unit).nonzero().squeeze(1)
        uses = factors[layout.names[unit]]
        share_KT = contributions(uses, slot_M[here_K], column_M[here_K] - offsets[unit])
        position_M[here_K] = share_KT.abs_().argmax(1)
    return position_M


def contributions(uses: list[Factor], slot_M: Tensor, index_M: Tensor) -> Tensor:
    """Return what each position adds to the gradient of the given entries of one unit, [M, T].

    Contributions of several calls of the unit in one forward pass are summed by position, and so
    are those of axes beside the window, such as heads.
    """
    # Calls may have different numbers of positions; the sum has the largest.
    first, *others = sorted(
        (by_position(contribution(use, slot_M, index_M), use) for use in uses),
        key=lambda share_MT: share_MT.shape[1],
        reverse=True,
    )
    for share_MT in others:
        first[:, : share_MT.shape[1]] += share_MT
    return first


def by_position(share_MT: Tensor, use: Factor) -> Tensor:
    """Sum the entries of each position, where axes lie beside the window."""
    if use.per_position == 1:
        return share_MT
    return share_MT.unflatten(1, (-1, use.per_position)).sum(2)


def contribution(use: Factor, slot_M: Tensor, index_M: Tensor) -> Tensor:
    """Return what each entry of one call adds; entries of a position stand side by side."""
    if use.kind == "outer":
        left_NTR, right_NTC = use.sides
        width = right_NTC.shape[2]
        return left_NTR[slot_M, :, index_M // width] * right_NTC[slot_M, :, index_M % width]
    if use.kind == "rows":
        assert use.token_NT is not None
        width = use.delta_NTO.shape[2]
        here_MT = use.token_NT[slot_M] == (index_M // width)[:, None]
        return use.delta_NTO[slot_M, :, index_M % width] * here_MT
    share_MT = use.delta_NTO[slot_M, :, index_M]
    return share_MT if use.a_NTI is None else share_MT * use.a_NTI[slot_M, :, index_M]
