"""Dense shifts of a batch, and the few entries among them that can be outliers.

Finding the k largest of 726,000 shifts a datum must not cost more than computing them, so nothing
is sorted. While a unit's shifts are still in the processor's cache, its columns are dealt into
groups and the largest |shift| of each group is kept. The k-th largest of these peaks is a lower
bound on the k-th largest shift (k groups hold an entry at least that large), so only entries that
reach it contend. Groups interleave distant columns, which is why barely more than k entries do; and
since the bound holds for any data there is no estimate that could fail.

Shapes: N datum, S column of a unit (padded to whole groups), G group, P captured parameter,
M contender, J place in a group.
"""

import torch
from torch import Tensor

from capture.factors import Factors
from capture.gradients import Layout, write_shifts

GROUP_SIZE = 32
BUFFER_BYTES = 256 * 2**20
"""A batch whose dense shifts need more than this goes through in pieces."""


class ShiftBuffer:
    """Memory for the dense shifts of some datums, unit after unit, used again at every step."""

    def __init__(self, layout: Layout, batch: int, device: torch.device) -> None:
        groups = [-(-size // GROUP_SIZE) for size in layout.sizes]
        per_datum = GROUP_SIZE * sum(groups)
        self.layout = layout
        self.datums = max(1, min(batch, BUFFER_BYTES // (4 * per_datum)))
        self.flat = torch.zeros(self.datums * per_datum, device=device)
        blocks = self.flat.split([self.datums * GROUP_SIZE * g for g in groups])
        self.block_NS = [block.view(self.datums, -1) for block in blocks]
        self.peak_NG = torch.empty(self.datums, sum(groups), device=device)
        self.peaks_NG = self.peak_NG.split(groups, dim=1)
        self.total_P = torch.empty(layout.size, device=device)
        self.group_size = torch.tensor(groups, device=device)
        self.first_group = self.group_size.cumsum(0) - self.group_size
        self.offset = torch.tensor(layout.offsets, device=device)

    def fill(self, factors: Factors, scale: float) -> Tensor:
        """Write these datums' shifts; returns their sum, [P]."""
        N = next(iter(factors.values()))[0].delta_NTO.shape[0]
        totals = self.total_P.split(self.layout.sizes)
        for name, block, peaks, total in zip(
            self.layout.names, self.block_NS, self.peaks_NG, totals, strict=True
        ):
            shift_NS = block[:N, : len(total)]
            write_shifts(factors[name], scale, shift_NS)
            torch.sum(shift_NS, 0, out=total)
            grouped = block[:N].view(N, GROUP_SIZE, -1)
            peaks[:N] = torch.maximum(grouped.amax(1), grouped.amin(1).neg_())
        return self.total_P

    def contenders(self, num_datums: int, bound_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Datum, column and shift of every entry with |shift| ≥ its datum's bound, ascending."""
        datum_M, group_M = (self.peak_NG[:num_datums] >= bound_N[:, None]).nonzero(as_tuple=True)
        unit_M = torch.searchsorted(self.first_group, group_M, right=True) - 1
        groups_M = self.group_size[unit_M]
        place_MJ = (group_M - self.first_group[unit_M])[:, None] + groups_M[:, None] * torch.arange(
            GROUP_SIZE, device=group_M.device
        )
        start_M = GROUP_SIZE * (self.datums * self.first_group[unit_M] + datum_M * groups_M)
        shift_MJ = self.flat.take(start_M[:, None] + place_MJ)
        column_MJ = self.offset[unit_M][:, None] + place_MJ
        contends_MJ = (shift_MJ.abs() >= bound_N[datum_M][:, None]) & (
            column_MJ < self.offset[unit_M + 1][:, None]
        )
        key_M, order_M = (datum_M[:, None] * self.layout.size + column_MJ)[contends_MJ].sort()
        shift_M = shift_MJ[contends_MJ][order_M]
        return key_M // self.layout.size, key_M % self.layout.size, shift_M
