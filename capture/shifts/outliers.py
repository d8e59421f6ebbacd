"""The exact k largest shifts of each datum, of each of its units, or of the step.

Shapes: N datum, G group or entry with a known magnitude, U unit, P captured parameter, M entry,
A entry of any worker, R row to select in, W widest row, K kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from capture.errors import ConfigError
from capture.gradients.dense import slice_datums
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.process_group import Group
from capture.shifts.positions import strongest_positions
from capture.shifts.recorded_steps import describe_steps, require_entries
from capture.shifts.shift_buffer import ShiftBuffer
from capture.shifts.wide_units import ENTRIES_AT_ONCE, WideRows, WideUnit

Scope = Literal["datum", "step", "unit"]


@dataclass(frozen=True, kw_only=True)
class OutlierConfig:
    """Which shifts are recorded as outliers."""

    enabled: bool = True
    """Whether outliers are recorded. Factors, if recorded, give every shift later."""
    k: int = 1000
    """Number of shifts recorded, those of largest |shift|."""
    scope: Scope = "datum"
    """datum: the k largest of each datum in each step, as in the study. step: of the whole step.
    unit: of each unit, for each datum in each step; a unit with at most k entries keeps them
    all."""
    steps: list[str] = field(default_factory=list)
    """Record only segments with any of these steps: ranges (0-99), every:N (each N-th step), log:N
    (N steps a decade). Empty: all segments. The audit and the tallies go on at every step, and
    ``ontogeny replay`` adds the segments left out."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError("capture.outliers.k", f"got {self.k}, must be at least 1")
        require_entries(self.steps, "capture.outliers.steps")

    def rows_of_step(self, sizes: Sequence[int], batch: int) -> int:
        """Return the rows recorded of a step, with the ``sizes`` of the captured units."""
        if self.scope == "unit":
            return batch * sum(min(self.k, size) for size in sizes)
        return self.k if self.scope == "step" else batch * self.k

    def require_available(self, sizes: Sequence[int], setting: str) -> None:
        """Raise ``ConfigError``, naming ``setting``, if no datum has k shifts to choose from."""
        if not self.enabled:
            return
        by_unit = self.scope == "unit"
        most = max(sizes) if by_unit else sum(sizes)
        if self.k > most:
            what = (
                "size of the largest captured unit" if by_unit else "number of captured parameters"
            )
            raise ConfigError(setting, f"got {self.k}, must be at most {most}, the {what}")

    def describe(self) -> str:
        """Return the number and scope in words, as in ``top 1,000 a datum``."""
        if not self.enabled:
            return "no outliers"
        each = "datum and unit" if self.scope == "unit" else self.scope
        return f"top {self.k:,} a {each}{describe_steps(self.steps)}"


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
) -> Outliers:
    """Return the outliers of a step.

    A shift is the gradient times ``scale`` and, if given, times the unit's ``preconditioner``. The
    outliers are those of a full sort; ties go to the lowest slot, then to the lowest column.
    """
    batch = next(iter(factors.values()))[0].delta_NTO.shape[0]
    found = []
    for start in range(0, batch, buffer.datums):
        stop = min(start + buffer.datums, batch)
        part = slice_datums(factors, start, stop)
        buffer.fill(part, scale, preconditioner)
        wide = wide_rows(buffer, part, scale, config.k, preconditioner)
        slot_M, column_M, shift_M = select_outliers(buffer, wide, stop - start, config)
        found.append((slot_M + start, column_M, shift_M))
    slot_M, column_M, shift_M = (torch.cat(parts) for parts in zip(*found, strict=True))
    if config.scope == "step":
        keep_K = largest_indices(shift_M.abs(), torch.zeros_like(slot_M), config.k)
        slot_M, column_M, shift_M = slot_M[keep_K], column_M[keep_K], shift_M[keep_K]
    position_M = strongest_positions(factors, buffer.layout, slot_M, column_M)
    return Outliers(slot_M, column_M, shift_M, position_M)


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
    """Return datum, column and shift of the k largest |shift| of each datum, unit, or the step."""
    if config.scope == "unit":
        bound_NG, bounds = bounds_by_unit(buffer, wide, num_datums, config.k)
    else:
        by_datum = config.scope == "datum"
        bound_N = bound_of_all(buffer, wide, num_datums, config.k, by_datum=by_datum)
        bound_NG = bound_N[:, None].expand(-1, buffer.peak_NG.shape[1])
        bounds = dict.fromkeys(wide, bound_N)
    found = [buffer.candidates(num_datums, bound_NG)]
    for offset, rows in wide.items():
        datum_M, index_M, shift_M = rows.candidates(bounds[offset])
        found.append((datum_M, offset + index_M, shift_M))
    datum_M, column_M, shift_M = merge_candidates(found, buffer.layout.size) if wide else found[0]
    row_M = row_of_entries(config.scope, buffer.layout, datum_M, column_M)
    keep_K = largest_indices(shift_M.abs(), row_M, config.k)
    return datum_M[keep_K], column_M[keep_K], shift_M[keep_K]


def bound_of_all(
    buffer: ShiftBuffer, wide: dict[int, WideRows], num_datums: int, k: int, *, by_datum: bool
) -> Tensor:
    """Return a lower bound on the k-th largest |shift| of each datum, or of all datums, [N]."""
    peak_NG = buffer.peak_NG[:num_datums]
    if wide:
        peak_NG = torch.cat([peak_NG, *(rows.seed_magnitudes() for rows in wide.values())], 1)
    return kth_largest(peak_NG if by_datum else peak_NG.reshape(1, -1), k).expand(num_datums)


def bounds_by_unit(
    buffer: ShiftBuffer, wide: dict[int, WideRows], num_datums: int, k: int
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return lower bounds on the k-th largest |shift| of each datum in each unit.

    The first value holds the bound of each group of a dense unit, [N, G], the second the bounds of
    each wide unit, [N], by the unit's first position among the P.
    """
    peaks = [peak_NG[:num_datums] for peak_NG in buffer.peaks_NG]
    each = [kth_largest(peak_NG, k)[:, None].expand_as(peak_NG) for peak_NG in peaks]
    bound_NG = torch.cat(each, 1) if each else buffer.peak_NG[:num_datums]
    bounds = {offset: kth_largest(rows.seed_magnitudes(), k) for offset, rows in wide.items()}
    return bound_NG, bounds


def kth_largest(size_RG: Tensor, k: int) -> Tensor:
    """Return the k-th largest of each row, 0 if a row has fewer than k, [R].

    Peaks and seeds are |shift| of distinct entries, so the k-th largest of them is a lower bound on
    the k-th largest of all entries. With fewer than k of them, every entry is a candidate.
    """
    if k > size_RG.shape[1]:
        return size_RG.new_zeros(len(size_RG))
    if size_RG.device.type == "cpu":
        # NumPy partitions numbers alone. torch.topk carries their indices and takes nine times as
        # long for 20 rows of 35,000.
        place = size_RG.shape[1] - k
        return torch.from_numpy(np.partition(size_RG.numpy(), place, axis=1)[:, place].copy())
    return size_RG.topk(k, dim=1, sorted=False).values.amin(1)


def row_of_entries(scope: Scope, layout: Layout, datum_M: Tensor, column_M: Tensor) -> Tensor:
    """Return the row that each entry is selected in, ascending: its datum, its unit, or 0, [M]."""
    if scope == "step":
        return torch.zeros_like(datum_M)
    if scope == "datum":
        return datum_M
    first_U = torch.tensor(layout.offsets[1:], device=column_M.device)
    unit_M = torch.searchsorted(first_U, column_M, right=True)
    return datum_M * len(first_U) + unit_M


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
    at_once = max(1, ENTRIES_AT_ONCE // int(count_R.max()))
    if at_once >= len(count_R):
        return largest_of_padded(size_M, row_M, count_R, k)
    kept, start = [], 0
    for first, count_C in zip(range(0, len(count_R), at_once), count_R.split(at_once), strict=True):
        stop = start + int(count_C.sum())
        if stop > start:
            part = slice(start, stop)
            kept.append(start + largest_of_padded(size_M[part], row_M[part] - first, count_C, k))
        start = stop
    return torch.cat(kept)


def largest_of_padded(size_M: Tensor, row_M: Tensor, count_R: Tensor, k: int) -> Tensor:
    """Like ``largest_indices``, with all rows padded to the widest of them."""
    start_R = count_R.cumsum(0) - count_R
    width = int(count_R.max())
    k = min(k, width)
    column_M = torch.arange(len(size_M), device=size_M.device) - start_R[row_M]
    size_RW = size_M.new_full((len(count_R), width), -1.0)
    size_RW[row_M, column_M] = size_M
    least_R1 = kth_largest(size_RW, k)[:, None]
    # Ties go to the first, which topk would not promise.
    above_RW, tied_RW = size_RW > least_R1, size_RW == least_R1
    room_R1 = k - above_RW.sum(1, keepdim=True)
    keep_RW = above_RW | (tied_RW & (tied_RW.cumsum(1) <= room_R1))
    return keep_RW[row_M, column_M].nonzero().squeeze(1)
