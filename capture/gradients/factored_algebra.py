"""Algebra on factored gradients: rows, columns and inner products without the dense gradient.

``shape`` is a unit's shape as stored; a unit with more than two axes counts as a matrix of its
first axis by all others. ``uses`` is a unit's list of factors, one per use in the forward pass.

Shapes: N, M datum; T, S position; R row of a unit, C column, P entry.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from capture.gradients.dense import write_shifts
from capture.gradients.factors import Factor


def dense(uses: list[Factor], shape: Sequence[int]) -> Tensor:
    """Return every datum's gradient, dense, [N, *shape]."""
    delta_NTO = uses[0].delta_NTO
    out_NP = delta_NTO.new_empty(len(delta_NTO), math.prod(shape))
    write_shifts(uses, 1.0, out_NP)
    return out_NP.view(-1, *shape)


def column(uses: list[Factor], n: int, shape: Sequence[int]) -> Tensor:
    """Return column n of every datum's gradient, [N, R]."""
    return torch.stack([column_of(use, n, shape) for use in uses]).sum(0)


def column_of(use: Factor, n: int, shape: Sequence[int]) -> Tensor:
    if use.kind == "outer":
        left_NTR, right_NTC = use.sides
        return torch.einsum("ntr,nt->nr", left_NTR, right_NTC[:, :, n])
    if use.kind == "rows":
        assert use.token_NT is not None
        out_NR = use.delta_NTO.new_zeros(len(use.delta_NTO), shape[0])
        return out_NR.scatter_add_(1, use.token_NT, use.delta_NTO[:, :, n])
    return matrices(use, shape)[:, :, n]


def row(uses: list[Factor], r: int, shape: Sequence[int]) -> Tensor:
    """Return row r of every datum's gradient, [N, C]."""
    return torch.stack([row_of(use, r, shape) for use in uses]).sum(0)


def row_of(use: Factor, r: int, shape: Sequence[int]) -> Tensor:
    if use.kind == "outer":
        left_NTR, right_NTC = use.sides
        return torch.einsum("nt,ntc->nc", left_NTR[:, :, r], right_NTC)
    if use.kind == "rows":
        assert use.token_NT is not None
        here_NT = (use.token_NT == r).to(use.delta_NTO.dtype)
        return torch.einsum("nt,ntc->nc", here_NT, use.delta_NTO)
    return matrices(use, shape)[:, r]


def matrices(use: Factor, shape: Sequence[int]) -> Tensor:
    """Return the gradient of a "sum" or "scale" factor as matrices, [N, R, C]."""
    return entries(use).view(-1, shape[0], math.prod(shape[1:]))


def entries(use: Factor) -> Tensor:
    """Return the gradient of a "sum" or "scale" factor, [N, P]."""
    product_NTP = use.delta_NTO if use.a_NTI is None else use.delta_NTO * use.a_NTI
    return product_NTP.sum(1)


def inner_products(uses_i: list[Factor], uses_j: list[Factor]) -> Tensor:
    """Return ⟨g_n, g_m⟩ of one unit's gradients for datums n of one batch, m of another, [N, M].

    Sums of outer products use Σ_{t,s} (a_t · a'_s)(δ_t · δ'_s), which needs no dense gradient.
    """
    # ⟨Σ_u g_u, Σ_v g'_v⟩ = Σ_{u,v} ⟨g_u, g'_v⟩: every use pairs with every other, tied ones too.
    parts = [inner_product(one, other) for one in uses_i for other in uses_j]
    return torch.stack(parts).sum(0)


def inner_product(one: Factor, other: Factor) -> Tensor:
    if one.kind in ("sum", "scale"):  # a unit's uses are all of this form, or none is
        return entries(one) @ entries(other).T
    N, M = len(one.delta_NTO), len(other.delta_NTO)
    out_NM = one.delta_NTO.new_empty(N, M)
    for n in range(N):  # one datum at a time: all pairs at once would need [N, M, T, S]
        alone = one.map_tensors(lambda x, n=n: x[n : n + 1].expand(M, *x.shape[1:]))
        gram_MTS = right_of(alone) @ right_of(other).transpose(1, 2)
        out_NM[n] = (left_products(alone, other) * gram_MTS).sum((1, 2))
    return out_NM


def right_of(use: Factor) -> Tensor:
    """Return the vectors that span the columns, [N, T, C]."""
    return use.sides[1] if use.kind == "outer" else use.delta_NTO


def left_products(one: Factor, other: Factor) -> Tensor:
    """Return l_t · l'_s of the vectors that span the rows in two uses of a unit, [N, T, S].

    A look-up of row r is the one-hot vector e_r, which is never written out: e_r · e_s is 1 if
    r = s, and e_r · l is entry r of l.
    """
    if one.kind == "outer" and other.kind == "outer":
        return one.sides[0] @ other.sides[0].transpose(1, 2)
    if one.kind == "rows" and other.kind == "rows":
        assert one.token_NT is not None
        assert other.token_NT is not None
        same_NTS = one.token_NT[:, :, None] == other.token_NT[:, None, :]
        return same_NTS.to(one.delta_NTO.dtype)
    if one.kind == "outer":
        return left_products(other, one).transpose(1, 2)
    assert one.token_NT is not None
    left_NSR = other.sides[0]
    index_NST = one.token_NT[:, None].expand(-1, left_NSR.shape[1], -1)
    return left_NSR.gather(2, index_NST).transpose(1, 2)


def along(uses: list[Factor], direction_Q: Tensor, shape: Sequence[int]) -> Tensor:
    """Return ⟨direction, gradient⟩ of every direction and datum, [Q, N], in the direction's type.

    ``direction_Q``: [Q, *shape].
    """
    parts = [along_use(use, direction_Q.to(use.delta_NTO.device), shape) for use in uses]
    return torch.stack(parts).sum(0)


def along_use(use: Factor, direction_Q: Tensor, shape: Sequence[int]) -> Tensor:
    if use.kind in ("sum", "scale"):
        return direction_Q.flatten(1) @ entries(use).to(direction_Q).T
    direction_QRC = direction_Q.reshape(len(direction_Q), shape[0], math.prod(shape[1:]))
    if use.kind == "outer":
        left_NTR, right_NTC = (side.to(direction_Q) for side in use.sides)
    else:
        assert use.token_NT is not None
        left_NTR, right_NTC = use.token_NT, use.delta_NTO.to(direction_Q)
    rows_Q = (
        direction_RC[left_NTR] if use.kind == "rows" else left_NTR @ direction_RC
        for direction_RC in direction_QRC
    )
    return torch.stack([(row_NTC * right_NTC).sum((1, 2)) for row_NTC in rows_Q])
