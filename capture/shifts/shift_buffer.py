"""Dense shifts of a batch, except for wide units, and the few that can be outliers.

Finding the k largest of 726,000 shifts of a datum must not cost more than computing them, so they
are not sorted. While a unit's shifts are still in the processor's cache, its columns are divided
into groups and the largest |shift| of each group, its *peak*, is stored. The k-th largest peak is a
lower bound on the k-th largest |shift|, because k groups each hold an entry at least that large. So
only entries that reach this bound are candidates. Groups interleave distant columns, so that few
groups hold two large entries, and barely more than k entries are candidates. The bound holds for
any data.

Shapes: N datum, U unit, S column of a unit (padded to whole groups), G group, J index in a group,
P captured parameter, M candidate.
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
"""A batch whose dense shifts need more memory is processed in parts."""


class ShiftBuffer:
    """Memory for the dense shifts of some datums, unit after unit, reused at every step."""

    def __init__(self, layout: Layout, batch: int, device: torch.device) -> None:
        spans = dict(
            zip(layout.names, zip(layout.offsets, layout.sizes, strict=False), strict=True)
        )
        self.dense = {
            name: span for name, span in spans.items() if not is_wide(layout.shapes[name])
        }
        """Unit with dense shifts → its first position among the P, and its size."""
        self.wide = {name: span[0] for name, span in spans.items() if name not in self.dense}
        """Wide unit → its first position among the P."""
        sizes = [size for _, size in self.dense.values()]
        # Column s belongs to group s mod (number of groups). With an odd number, entries of one row
        # or column, often all large, fall into different groups.
        groups = [-(-size // GROUP_SIZE) | 1 for size in sizes]
        per_datum = GROUP_SIZE * sum(groups)
        self.layout = layout
        self.datums = max(1, min(batch, BUFFER_BYTES // max(1, 4 * per_datum)))
        self.flat = torch.zeros(self.datums * per_datum, device=device)
        blocks = self.flat.split([self.datums * GROUP_SIZE * g for g in groups])
        self.block_NS = [block.view(self.datums, -1) for block in blocks]
        self.peak_NG = torch.empty(self.datums, sum(groups), device=device)
        self.peaks_NG = self.peak_NG.split(groups, dim=1)
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
    ) -> None:
        """Compute these datums' shifts of all dense units, and the peaks of their groups.

        ``preconditioner`` multiplies each entry by unit, besides ``scale``; None means 1.
        """
        N = next(iter(factors.values()))[0].delta_NTO.shape[0]
        for (name, (_, size)), block, peaks in zip(
            self.dense.items(), self.block_NS, self.peaks_NG, strict=True
        ):
            shift_NS = block[:N, :size]
            write_shifts(factors[name], scale, shift_NS)
            if preconditioner:
                shift_NS *= preconditioner[name].reshape(-1)
            # [N, J, G]: the entries of a group are one number of groups apart. The padding is 0.
            grouped = block[:N].view(N, GROUP_SIZE, -1)
            peaks[:N] = torch.maximum(grouped.amax(1), grouped.amin(1).neg_())

    def candidates(self, num_datums: int, bound_NG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return datum, column and shift of entries with |shift| ≥ their group's bound, ascending.

        All groups of a unit have the same bound.
        """
        datum_G, group_G = (self.peak_NG[:num_datums] >= bound_NG).nonzero(as_tuple=True)
        least_G = bound_NG[datum_G, group_G]
        unit_G = torch.searchsorted(self.first_group_U, group_G, right=True) - 1
        first_G = group_G - self.first_group_U[unit_G]
        block_G = GROUP_SIZE * (
            self.datums * self.first_group_U[unit_G] + datum_G * self.groups_U[unit_G]
        )
        shift_GJ = self.flat.take(self.stride_UJ[unit_G].add_((block_G + first_G)[:, None]))
        group_M, member_M = (shift_GJ.abs() >= least_G[:, None]).nonzero(as_tuple=True)
        unit_M = unit_G[group_M]
        index_M = first_G[group_M] + self.stride_UJ[unit_M, member_M]
        key_M = datum_G[group_M] * self.layout.size + self.offset_U[unit_M] + index_M
        # A bound of 0 is reached by the padding, too.
        real_M = index_M < self.size_U[unit_M]
        key_M, order_M = key_M[real_M].sort()
        shift_M = shift_GJ[group_M, member_M][real_M][order_M]
        return key_M // self.layout.size, key_M % self.layout.size, shift_M
