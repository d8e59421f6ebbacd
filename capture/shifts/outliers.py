"""The exact k largest shifts of each datum or step, and the position that contributed most to each.

Shapes: N datum, T position, G group or entry with a known magnitude, P captured parameter, M entry,
A entry of any worker, R row to select in, W widest row, K kept.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from capture.errors import ConfigError
from capture.gradients.dense import slice_datums, write_sum
from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout
from capture.process_group import Group
from capture.shifts.shift_buffer import ShiftBuffer
from capture.shifts.wide_units import WideRows, WideUnit


@dataclass(frozen=True, kw_only=True)
class OutlierConfig:
    """Which shifts are recorded as outliers."""

    k: int = 1000
    """Number of shifts recorded, those of largest |shift|."""
    scope: Literal["datum", "step"] = "datum"
    """The k largest of each datum in each step (as in the study), or of the whole step."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError("capture.outliers.k", f"got {self.k}, must be at least 1")


@dataclass(frozen=True)
class Outliers:
    """Recorded shifts of one step, by slot, then by column."""

    slot_M: Tensor
    column_M: Tensor
    """Position among the P captured parameters (``Layout``)."""
    shift_M: Tensor
    position_M: Tensor
    """The position whose contribution to the entry is largest in absolute value."""


def find_outliers(
    buffer: ShiftBuffer,
    factors: Factors,
    scale: float,
    config: OutlierConfig,
    preconditioner: Mapping[str, Tensor] | None = None,
) -> tuple[Outliers, Tensor]:
    """Return the outliers of a step, and the sum of all its shifts over the batch, [P].

    A shift is the gradient times ``scale`` and, if given, times the unit's ``preconditioner``. The
    outliers are those of a full sort; ties go to the lowest slot, then to the lowest column.
    """
    batch = next(iter(factors.values()))[0].delta_NTO.shape[0]
    total_P = torch.zeros_like(buffer.total_P)
    found = []
    for start in range(0, batch, buffer.datums):
        stop = min(start + buffer.datums, batch)
        part = slice_datums(factors, start, stop)
        total_P += buffer.fill(part, scale, preconditioner)
        wide = wide_rows(buffer, part, scale, config.k, preconditioner)
        slot_M, column_M, shift_M = select_outliers(buffer, wide, stop - start, config)
        found.append((slot_M + start, column_M, shift_M))
    for name, offset in buffer.wide.items():
        sum_S = total_P[offset : offset + math.prod(buffer.layout.shapes[name])]
        write_sum(factors[name], scale, sum_S, preconditioner[name] if preconditioner else None)
    slot_M, column_M, shift_M = (torch.cat(parts) for parts in zip(*found, strict=True))
    if config.scope == "step":
        keep_K = largest_indices(shift_M.abs(), torch.zeros_like(slot_M), config.k)
        slot_M, column_M, shift_M = slot_M[keep_K], column_M[keep_K], shift_M[keep_K]
    position_M = strongest_positions(factors, buffer.layout, slot_M, column_M)
    return Outliers(slot_M, column_M, shift_M, position_M), total_P


def keep_of_worker(
    outliers: Outliers, config: OutlierConfig, group: Group, first_slot: int
) -> Outliers:
    """Return the outliers of this worker that the group records, with slots of the whole batch.

    The k largest of a step are among the k largest of each worker, so each worker finds its own
    and learns from the magnitudes of all which of them to keep.
    """
    slot_M = outliers.slot_M + first_slot
    column_M, shift_M, position_M = outliers.column_M, outliers.shift_M, outliers.position_M
    if config.scope == "step" and group.size > 1:
        sizes = group.all_gather(shift_M.abs())
        size_A = torch.cat(sizes)
        first = sum(len(size_M) for size_M in sizes[: group.rank])
        keep_K = (
            largest_indices(size_A, torch.zeros_like(size_A, dtype=torch.int64), config.k) - first
        )
        keep_K = keep_K[(keep_K >= 0) & (keep_K < len(shift_M))]
        slot_M, column_M = slot_M[keep_K], column_M[keep_K]
        shift_M, position_M = shift_M[keep_K], position_M[keep_K]
    return Outliers(slot_M, column_M, shift_M, position_M)


def wide_rows(
    buffer: ShiftBuffer,
    factors: Factors,
    scale: float,
    k: int,
    preconditioner: Mapping[str, Tensor] | None,
) -> dict[int, WideRows]:
    """Return a search for each wide unit, by the unit's first position among the P."""
    found = {}
    for name, offset in buffer.wide.items():
        shape, by_entry = (
            buffer.layout.shapes[name],
            preconditioner[name] if preconditioner else None,
        )
        found[offset] = WideRows(WideUnit(factors[name], shape, scale, by_entry), k)
    return found


def select_outliers(
    buffer: ShiftBuffer, wide: dict[int, WideRows], num_datums: int, config: OutlierConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Return datum, column and shift of the k largest |shift| per datum, or of the step."""
    peak_NG = buffer.peak_NG[:num_datums]
    if wide:
        peak_NG = torch.cat([peak_NG, *(rows.seed_magnitudes() for rows in wide.values())], 1)
    peak_RG = peak_NG if config.scope == "datum" else peak_NG.reshape(1, -1)
    # Peaks and seeds are |shift| of distinct entries, so the k-th largest of them is a lower bound
    # on the k-th largest of all entries. With fewer than k of them, every entry is a candidate.
    bound_R = peak_RG.new_zeros(len(peak_RG))
    if config.k <= peak_RG.shape[1]:
        bound_R = peak_RG.topk(config.k, dim=1, sorted=False).values.amin(1)
    bound_N = bound_R.expand(num_datums)
    datum_M, column_M, shift_M = buffer.candidates(num_datums, bound_N)
    if wide:
        found = [(datum_M, column_M, shift_M)]
        for offset, rows in wide.items():
            datum_M, index_M, shift_M = rows.candidates(bound_N)
            found.append((datum_M, offset + index_M, shift_M))
        datum_M, column_M, shift_M = merge_candidates(found, buffer.layout.size)
    row_M = datum_M if config.scope == "datum" else torch.zeros_like(datum_M)
    keep_K = largest_indices(shift_M.abs(), row_M, config.k)
    return datum_M[keep_K], column_M[keep_K], shift_M[keep_K]


def merge_candidates(
    found: list[tuple[Tensor, Tensor, Tensor]], num_columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge several lists of datums, columns and shifts into one, by datum, then by column."""
    datum_M, column_M, shift_M = (torch.cat(parts) for parts in zip(*found, strict=True))
    order_M = (datum_M * num_columns + column_M).argsort()
    return datum_M[order_M], column_M[order_M], shift_M[order_M]


def largest_indices(size_M: Tensor, row_M: Tensor, k: int) -> Tensor:
    """Return indices of the k largest of each row; ``row_M`` ascends, ties go to the first."""
    count_R = torch.bincount(row_M)
    start_R = count_R.cumsum(0) - count_R
    width = int(count_R.max())
    k = min(k, width)
    column_M = torch.arange(len(size_M), device=size_M.device) - start_R[row_M]
    size_RW = size_M.new_full((len(count_R), width), -1.0)
    size_RW[row_M, column_M] = size_M
    least_R1 = size_RW.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    # topk does not define which of equal sizes it takes, so ties are resolved by hand.
    above_RW, tied_RW = size_RW > least_R1, size_RW == least_R1
    room_R1 = k - above_RW.sum(1, keepdim=True)
    keep_RW = above_RW | (tied_RW & (tied_RW.cumsum(1) <= room_R1))
    return keep_RW[row_M, column_M].nonzero().squeeze(1)


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
