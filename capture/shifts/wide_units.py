"""The exact largest shifts of an embedding or unembedding, without a dense N × V × I tensor.

An entry of row v is Σ_t c_tv b_ti, with b shared by all rows, so its absolute value is at most
max_t |c_tv| · max_i Σ_t |b_ti|. This upper bound is one number per row, from one pass over c. First
the rows with the largest bounds are computed. Together with the peaks of all other units they give
a threshold that a kept shift must reach. Then exactly the rows whose bound reaches the threshold
are computed. An embedding is the case in which c is 1 where row v was looked up and 0 elsewhere.
The bounds hold for any data; the data only determine how many rows must be computed.

Shapes: N datum, T position, V row of the unit, I its width, W computed row (padded), M entry.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capture.gradients.factors import Factor

TALL_RATIO = 8
"""A unit with at least this many times more rows than columns is wide, unless it is small."""
SMALL_SIZE = 2**16
"""Number of entries up to which dense shifts are cheaper than bounds."""
LARGE_SIZE = 2**26
"""Number of entries above which a unit with more rows than columns is wide: 256 MiB a datum."""
ENTRIES_AT_ONCE = 2**24
"""Number of entries computed at a time."""
SEEDS = 32
"""Rows computed first, besides those needed for k entries."""


def is_wide(shape: Sequence[int]) -> bool:
    """Return whether the dense shifts of a unit of this shape are never materialised."""
    if len(shape) != 2:
        return False
    (rows, columns), size = shape, shape[0] * shape[1]
    return (rows >= TALL_RATIO * columns and size > SMALL_SIZE) or (
        rows > columns and size > LARGE_SIZE
    )


@dataclass(frozen=True)
class WideUnit:
    """Factors of a wide unit for some datums, and the multipliers from gradient to shift."""

    uses: list[Factor]
    shape_VI: tuple[int, ...]
    scale: float
    preconditioner_VI: Tensor | None

    def bounds(self) -> Tensor:
        """Return an upper bound on |shift| in each row, with room for rounding, [N, V]."""
        V = self.shape_VI[0]
        bound_NV, *others = (row_bounds(use, V) for use in self.uses)
        for other_NV in others:
            bound_NV += other_NV
        # Rounding of a float32 sum is at most terms · 2^-24, relative; so is that of the bound.
        terms = sum(use.delta_NTO.shape[1] for use in self.uses)
        bound_NV *= abs(self.scale) * (1 + (terms + 8) * 2.0**-22)
        if self.preconditioner_VI is not None:
            bound_NV *= self.preconditioner_VI.abs().amax(1)
        return bound_NV

    def rows(self, row_NW: Tensor) -> Tensor:
        """Return the shifts of these rows, [N, W, I]."""
        entry_NWI, *others = (row_entries(use, row_NW, self.shape_VI[1]) for use in self.uses)
        for other_NWI in others:
            entry_NWI += other_NWI
        entry_NWI *= self.scale
        if self.preconditioner_VI is not None:
            entry_NWI *= self.preconditioner_VI[row_NW]
        return entry_NWI


class WideRows:
    """Search for the entries of a wide unit that can be among the k largest."""

    def __init__(self, unit: WideUnit, k: int) -> None:
        self.unit = unit
        self.bound_NV = unit.bounds()
        V, I = unit.shape_VI  # noqa: E741
        self.rows_for_k = -(-k // I)
        seeds = min(V, SEEDS + 2 * self.rows_for_k)
        self.seed_NW = self.bound_NV.topk(seeds, dim=1, sorted=False).indices
        self.seed_NWI = unit.rows(self.seed_NW)

    def seed_magnitudes(self) -> Tensor:
        """Return |shift| of the entries computed first, [N, ·]."""
        return self.seed_NWI.abs().flatten(1)

    def candidates(self, bound_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return datum, index and shift of all entries with |shift| ≥ their datum's bound.

        Where the bound is 0, entries equal to 0 include at least the first k.
        """
        found = [entries_reaching(self.seed_NWI, self.seed_NW, self.seed_NW >= 0, bound_N)]
        row_NW, real_NW = self.remaining(bound_N)
        N, W = row_NW.shape
        width = max(1, ENTRIES_AT_ONCE // max(1, N * self.unit.shape_VI[1]))
        for start in range(0, W, width):
            part = slice(start, start + width)
            shift_NWI = self.unit.rows(row_NW[:, part])
            found.append(entries_reaching(shift_NWI, row_NW[:, part], real_NW[:, part], bound_N))
        datum_M, index_M, shift_M = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        return datum_M, index_M, shift_M

    def remaining(self, bound_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows still to be computed, padded, [N, W], and a mask of the real ones."""
        threshold_N1 = bound_N[:, None]
        first_V = torch.arange(self.bound_NV.shape[1], device=bound_N.device) < self.rows_for_k
        # Where the threshold is 0, all rows reach it. Ties go to the lowest index, so of the rows
        # that hold only zeros the first ones suffice.
        matters_NV = (self.bound_NV >= threshold_N1) & ((self.bound_NV > 0) | first_V)
        matters_NV.scatter_(1, self.seed_NW, False)
        count_N = matters_NV.sum(1)
        datum_R, row_R = matters_NV.nonzero(as_tuple=True)
        column_R = (
            torch.arange(len(row_R), device=row_R.device) - (count_N.cumsum(0) - count_N)[datum_R]
        )
        row_NW = row_R.new_full((len(count_N), int(count_N.max())), -1)
        row_NW[datum_R, column_R] = row_R
        return row_NW.clamp(min=0), row_NW >= 0


def row_bounds(use: Factor, num_rows: int) -> Tensor:
    """Return an upper bound on |gradient| in each row, up to rounding, [N, V]."""
    if use.kind == "outer":
        left_NTV, right_NTI = use.sides
        sum_N1 = right_NTI.abs().sum(1).amax(1, keepdim=True)
        return torch.maximum(left_NTV.amax(1), left_NTV.amin(1).neg_()).mul_(sum_N1)
    delta_NTO = use.delta_NTO
    if use.kind == "sum":
        return delta_NTO.sum(1).unflatten(1, (num_rows, -1)).abs().amax(2)
    assert use.kind == "rows"
    assert use.token_NT is not None
    N = len(delta_NTO)
    key_NT = use.token_NT + num_rows * torch.arange(N, device=delta_NTO.device)[:, None]
    bound = delta_NTO.new_zeros(N * num_rows)
    return bound.index_add_(0, key_NT.flatten(), delta_NTO.abs().amax(2).flatten()).view(N, -1)


def row_entries(use: Factor, row_NW: Tensor, width: int) -> Tensor:
    """Return the gradient of these rows from one call of the unit, [N, W, I]."""
    N, T, _ = use.delta_NTO.shape
    if use.kind == "outer":
        left_NTV, right_NTI = use.sides
        left_NTW = left_NTV.gather(2, row_NW[:, None].expand(N, T, -1))
        return left_NTW.transpose(1, 2) @ right_NTI
    if use.kind == "sum":
        dense_NVI = use.delta_NTO.sum(1).unflatten(1, (-1, width))
        return dense_NVI.gather(1, row_NW[..., None].expand(-1, -1, width))
    assert use.kind == "rows"
    assert use.token_NT is not None
    here_NWT = row_NW[:, :, None] == use.token_NT[:, None, :]
    return here_NWT.to(use.delta_NTO.dtype) @ use.delta_NTO


def entries_reaching(
    shift_NWI: Tensor, row_NW: Tensor, real_NW: Tensor, bound_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return datum, index and shift of the real entries with |shift| ≥ their datum's bound."""
    reach_NWI = (shift_NWI.abs() >= bound_N[:, None, None]) & real_NW[..., None]
    datum_M, row_M, column_M = reach_NWI.nonzero(as_tuple=True)
    index_M = row_NW[datum_M, row_M] * shift_NWI.shape[2] + column_M
    return datum_M, index_M, shift_NWI[datum_M, row_M, column_M]
