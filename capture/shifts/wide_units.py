"""The largest shifts of an embedding or unembedding, exactly, without datum × vocabulary × width.

An entry of row v is Σ_t c_tv b_ti, with b shared by all rows. So it is no larger than max_t |c_tv|
times max_i Σ_t |b_ti|: one number a row, from one quick pass over c. The rows with the largest
bounds are computed at once; with the peaks of all other units they say how large a shift must be to
be kept. Then exactly those rows are computed whose bound reaches that far. An embedding is the case
in which c is 1 where row v was looked up and 0 elsewhere. The bounds hold for any data; only how
many rows must be computed depends on it.

Shapes: N datum, T position, V row of the unit, I its width, W row looked at (padded), M entry.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capture.gradients.factors import Factor

TALL = 8
"""A unit with this many times more rows than columns is wide, if it is not small."""
SMALL = 2**16
"""Entries up to which a unit's dense shifts are cheaper than bounds."""
LARGE = 2**26
"""Entries above which a unit with more rows than columns is wide: 256 MiB a datum."""
PIECE = 2**24
"""Entries computed at a time."""
SEEDS = 32
"""Rows that are computed whatever their bound, besides those needed for k entries."""


def is_wide(shape: Sequence[int]) -> bool:
    """Whether the dense shifts of a unit of this shape must never exist."""
    if len(shape) != 2:
        return False
    (rows, columns), size = shape, shape[0] * shape[1]
    return (rows >= TALL * columns and size > SMALL) or (rows > columns and size > LARGE)


@dataclass(frozen=True)
class WideUnit:
    """One wide unit's uses by some datums, and what turns its gradients into shifts."""

    uses: list[Factor]
    shape_VI: tuple[int, ...]
    scale: float
    preconditioner_VI: Tensor | None

    def bounds(self) -> Tensor:
        """What no |shift| of each row exceeds, [N, V], rounding included."""
        V = self.shape_VI[0]
        bound_NV, *others = (row_bounds(use, V) for use in self.uses)
        for other_NV in others:
            bound_NV += other_NV
        terms = sum(use.delta_NTO.shape[1] for use in self.uses)
        bound_NV *= abs(self.scale) * (1 + (terms + 8) * 2.0**-22)
        if self.preconditioner_VI is not None:
            bound_NV *= self.preconditioner_VI.abs().amax(1)
        return bound_NV

    def rows(self, row_NW: Tensor) -> Tensor:
        """The shifts of these rows, [N, W, I]."""
        entry_NWI, *others = (row_entries(use, row_NW, self.shape_VI[1]) for use in self.uses)
        for other_NWI in others:
            entry_NWI += other_NWI
        entry_NWI *= self.scale
        if self.preconditioner_VI is not None:
            entry_NWI *= self.preconditioner_VI[row_NW]
        return entry_NWI


class WideRows:
    """What is known of a wide unit's shifts while the k largest are sought."""

    def __init__(self, unit: WideUnit, k: int) -> None:
        self.unit = unit
        self.bound_NV = unit.bounds()
        V, I = unit.shape_VI  # noqa: E741
        self.rows_for_k = -(-k // I)
        seeds = min(V, SEEDS + 2 * self.rows_for_k)
        self.seed_NW = self.bound_NV.topk(seeds, dim=1, sorted=False).indices
        self.seed_NWI = unit.rows(self.seed_NW)

    def sizes(self) -> Tensor:
        """|shift| of distinct entries, [N, ·]."""
        return self.seed_NWI.abs().flatten(1)

    def contenders(self, least_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Datum, index and shift of all entries with |shift| ≥ their datum's least.

        Where that is 0, of the zeros at least the k first.
        """
        found = [reaching(self.seed_NWI, self.seed_NW, self.seed_NW >= 0, least_N)]
        row_NW, real_NW = self.remaining(least_N)
        N, W = row_NW.shape
        width = max(1, PIECE // max(1, N * self.unit.shape_VI[1]))
        for start in range(0, W, width):
            piece = slice(start, start + width)
            shift_NWI = self.unit.rows(row_NW[:, piece])
            found.append(reaching(shift_NWI, row_NW[:, piece], real_NW[:, piece], least_N))
        datum_M, index_M, shift_M = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        return datum_M, index_M, shift_M

    def remaining(self, least_N: Tensor) -> tuple[Tensor, Tensor]:
        """Rows not computed yet that may matter, [N, W] with gaps at the end, and where none is."""
        least_N1 = least_N[:, None]
        first_V = torch.arange(self.bound_NV.shape[1], device=least_N.device) < self.rows_for_k
        matters_NV = (self.bound_NV >= least_N1) & ((self.bound_NV > 0) | first_V)
        matters_NV.scatter_(1, self.seed_NW, False)
        count_N = matters_NV.sum(1)
        datum_R, row_R = matters_NV.nonzero(as_tuple=True)
        place_R = (
            torch.arange(len(row_R), device=row_R.device) - (count_N.cumsum(0) - count_N)[datum_R]
        )
        row_NW = row_R.new_full((len(count_N), int(count_N.max())), -1)
        row_NW[datum_R, place_R] = row_R
        return row_NW.clamp(min=0), row_NW >= 0


def row_bounds(use: Factor, num_rows: int) -> Tensor:
    """What no |gradient| of each row's entries exceeds, but for rounding, [N, V]."""
    if use.kind == "outer":
        left_NTV, right_NTI = use.sides
        reach_N1 = right_NTI.abs().sum(1).amax(1, keepdim=True)
        return torch.maximum(left_NTV.amax(1), left_NTV.amin(1).neg_()).mul_(reach_N1)
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
    """One use's gradient of these rows, [N, W, I]."""
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


def reaching(
    shift_NWI: Tensor, row_NW: Tensor, real_NW: Tensor, least_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Datum, index and shift of the real entries with |shift| ≥ their datum's least."""
    reach_NWI = (shift_NWI.abs() >= least_N[:, None, None]) & real_NW[..., None]
    datum_M, place_M, column_M = reach_NWI.nonzero(as_tuple=True)
    index_M = row_NW[datum_M, place_M] * shift_NWI.shape[2] + column_M
    return datum_M, index_M, shift_NWI[datum_M, place_M, column_M]
