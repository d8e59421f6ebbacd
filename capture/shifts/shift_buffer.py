"""Dense shifts of a batch, wide units left out, and the few among them that can be outliers.

Finding the k largest of 726,000 shifts a datum must not cost more than computing them, so nothing
is sorted. While a unit's shifts are still in the processor's cache, its columns are dealt into
groups and the largest |shift| of each group is kept. The k-th largest of these peaks is a lower
bound on the k-th largest shift (k groups hold an entry at least that large), so only entries that
reach it contend. Groups interleave distant columns, which is why barely more than k entries do; and
since the bound holds for any data there is no estimate that could fail.

Shapes: N datum, U unit, S column of a unit (padded to whole groups), G group, J place in a group,
P captured parameter, M contender.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from capture.gradients.dense import write_shifts
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.shifts.wide_units import is_wide

GROUP_SIZE = 24
BUFFER_BYTES = 256 * 2**20
"""A batch whose dense shifts need more than this goes through in pieces."""


class ShiftBuffer:
    """Memory for the dense shifts of some datums, unit after unit, used again at every step."""

    def __init__(self, layout: Layout, batch: int, device: torch.device) -> None:
        places = dict(
            zip(layout.names, zip(layout.offsets, layout.sizes, strict=False), strict=True)
        )
        self.dense = {
            name: place for name, place in places.items() if not is_wide(layout.shapes[name])
        }
        """Unit with dense shifts → where it begins among the P, and its size."""
        self.wide = {name: place[0] for name, place in places.items() if name not in self.dense}
        """Unit without them → where it begins among the P."""
        sizes = [size for _, size in self.dense.values()]
        # An odd number of groups deals the entries of one row or column to different groups.
        groups = [-(-size // GROUP_SIZE) | 1 for size in sizes]
        per_datum = GROUP_SIZE * sum(groups)
        self.layout = layout
        self.datums = max(1, min(batch, BUFFER_BYTES // max(1, 4 * per_datum)))
        self.flat = torch.zeros(self.datums * per_datum, device=device)
        blocks = self.flat.split([self.datums * GROUP_SIZE * g for g in groups])
        self.block_NS = [block.view(self.datums, -1) for block in blocks]
        self.peak_NG = torch.empty(self.datums, sum(groups), device=device)
        self.peaks_NG = self.peak_NG.split(groups, dim=1)
        self.total_P = torch.zeros(layout.size, device=device)
        self.groups_U = torch.tensor(groups, device=device, dtype=torch.int64)
        self.first_group_U = self.groups_U.cumsum(0) - self.groups_U
        self.stride_UJ = self.groups_U[:, None] * torch.arange(GROUP_SIZE, device=device)
        offsets = [offset for offset, _ in self.dense.values()]
        self.offset_U = torch.tensor(offsets, device=device, dtype=torch.int64)
        self.size_U = torch.tensor(sizes, device=device, dtype=torch.int64)

    def fill(
        self,
        factors: Factors,
        scale: float,
        preconditioner: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Write these datums' shifts; returns their sum, [P], 0 for wide units.

        ``preconditioner``: what each entry's gradient is multiplied by besides; None: nothing.
        """
        N = next(iter(factors.values()))[0].delta_NTO.shape[0]
        for (name, (offset, size)), block, peaks in zip(
            self.dense.items(), self.block_NS, self.peaks_NG, strict=True
        ):
            shift_NS = block[:N, :size]
            write_shifts(factors[name], scale, shift_NS)
            if preconditioner:
                shift_NS *= preconditioner[name].reshape(-1)
            torch.sum(shift_NS, 0, out=self.total_P[offset : offset + size])
            grouped = block[:N].view(N, GROUP_SIZE, -1)
            peaks[:N] = torch.maximum(grouped.amax(1), grouped.amin(1).neg_())
        return self.total_P

    def contenders(self, num_datums: int, bound_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Datum, column and shift of every entry with |shift| ≥ its datum's bound, ascending."""
        datum_G, group_G = (self.peak_NG[:num_datums] >= bound_N[:, None]).nonzero(as_tuple=True)
        unit_G = torch.searchsorted(self.first_group_U, group_G, right=True) - 1
        first_G = group_G - self.first_group_U[unit_G]
        block_G = GROUP_SIZE * (
            self.datums * self.first_group_U[unit_G] + datum_G * self.groups_U[unit_G]
        )
        shift_GJ = self.flat.take(self.stride_UJ[unit_G].add_((block_G + first_G)[:, None]))
        group_M, place_M = (shift_GJ.abs() >= bound_N[datum_G, None]).nonzero(as_tuple=True)
        unit_M = unit_G[group_M]
        index_M = first_G[group_M] + self.stride_UJ[unit_M, place_M]
        key_M = datum_G[group_M] * self.layout.size + self.offset_U[unit_M] + index_M
        real_M = index_M < self.size_U[unit_M]
        key_M, order_M = key_M[real_M].sort()
        shift_M = shift_GJ[group_M, place_M][real_M][order_M]
        return key_M // self.layout.size, key_M % self.layout.size, shift_M
