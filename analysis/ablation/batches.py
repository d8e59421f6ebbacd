"""Group subjects and their datums into chunks of a bounded number of datums.

Each subject is ablated on its own datums. Chunks go through the distinct datums of all subjects in
ascending order, so a datum that several subjects share takes one clean forward pass.

Shapes: N datum, U distinct datum of a chunk, G subject of a group, Q (subject, datum) pair.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analysis.ablation.replacement import SubjectGroup


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some datums, and which of them belong to each subject."""

    datum_U: np.ndarray
    """Datums, ascending."""
    rows: list[np.ndarray]
    """For each subject, the indices of its datums in ``datum_U``."""

    def pairs(self, group: SubjectGroup) -> tuple[Tensor, Tensor]:
        """Return the (subject, datum) pairs of a group: indices into group and chunk, both [Q]."""
        rows = [self.rows[subject] for subject in group.subject_G.tolist()]
        group_Q = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
        device = group.subject_G.device
        return (
            torch.from_numpy(group_Q).to(device),
            torch.from_numpy(np.concatenate(rows)).to(device),
        )

    @property
    def num_pairs(self) -> int:
        return sum(map(len, self.rows))


def chunks(datums: Sequence[np.ndarray], size: int) -> Iterator[Chunk]:
    """Yield the distinct datums of all subjects, ``size`` at a time.

    ``datums`` lists the datums of each subject, in any order.
    """
    ascending = [np.sort(own) for own in datums]
    datum_N = np.unique(np.concatenate(ascending))
    for start in range(0, len(datum_N), size):
        datum_U = datum_N[start : start + size]
        # Both are sorted, so a subject's datums within the chunk's bounds all occur in datum_U.
        ends = (datum_U[0], datum_U[-1] + 1)
        own = (mine[slice(*np.searchsorted(mine, ends))] for mine in ascending)
        yield Chunk(datum_U, [np.searchsorted(datum_U, mine) for mine in own])
