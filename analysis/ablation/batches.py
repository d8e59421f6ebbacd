"""Which subjects meet which datums, a bounded number of datums at a time.

Each subject is ablated on datums of its own; a datum that several share is carried through the
model once. So datums are gone through in ascending order, whatever order each subject's have.

Shapes: N datum, U distinct datum of a chunk, G subject of a group, Q pair of subject and datum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analysis.ablation.replacement import SubjectGroup


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some datums, and for each subject which of them are its own."""

    datum_U: np.ndarray
    """Ascending."""
    rows: list[np.ndarray]
    """Of each subject: places in ``datum_U``."""

    def pairs(self, group: SubjectGroup) -> tuple[Tensor, Tensor]:
        """Places in the group and in the chunk, of all pairs of the group's subjects, [Q]."""
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
    """The distinct datums of all subjects, so many at a time."""
    ascending = [np.sort(own) for own in datums]
    datum_N = np.unique(np.concatenate(ascending))
    for start in range(0, len(datum_N), size):
        datum_U = datum_N[start : start + size]
        ends = (datum_U[0], datum_U[-1] + 1)
        own = (mine[slice(*np.searchsorted(mine, ends))] for mine in ascending)
        yield Chunk(datum_U, [np.searchsorted(datum_U, mine) for mine in own])
