"""Replacement of entries of a state, for many pairs of a subject and a datum.

Shapes: N datum, T position, C entry of a state, B changed entry, D width, Q (subject, datum) pair,
M position of any pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Site = TypeVar("Site")
"""A state of a model: ``SubjectSite`` of the study's transformer, else ``PartSite``."""
AnySite = TypeVar("AnySite", contravariant=True)


class Traced(Protocol[AnySite]):
    """States of an ordinary forward pass of some datums, without dropout."""

    @property
    def hidden_NTD(self) -> Tensor:
        """What enters the unembedding."""
        ...

    @property
    def positions_at_once(self) -> int:
        """Number of hidden states to propagate at once."""
        ...

    def at(self, site: AnySite) -> Tensor:
        """Return the state at a site, [N, T, C]."""
        ...

    def effect(self, site: AnySite, old: Tensor, new: Tensor) -> Tensor:
        """Return the change of the next operation's input that replacing entries makes."""
        ...

    def stays_in_place(self, site: AnySite) -> bool:
        """Return whether a change reaches the unembedding at its own position alone."""
        ...


@dataclass(frozen=True, eq=False)
class Edit(Generic[Site]):
    """Replacement of entries of one state, for pairs of a subject and a traced datum."""

    site: Site
    subject_Q: Tensor
    """Index into the list of subjects."""
    row_Q: Tensor
    """Index into the traced datums."""
    entry_QB: Tensor
    """Replaced entries."""
    new_QTB: Tensor
    """Their new values."""
    change_QTB: Tensor
    """Resulting change of the next operation's input."""
    first_Q: Tensor
    """First position with a change."""
    num_reached_Q: Tensor
    """Number of positions whose last hidden state can change."""

    @classmethod
    def of(
        cls,
        found: Traced[Site],
        site: Site,
        subject_Q: Tensor,
        row_Q: Tensor,
        entry_QB: Tensor,
        new_QTB: Tensor,
    ) -> "Edit[Site]":
        """Build an edit from the pairs for which anything changes, sorted by first change."""
        change = found.effect(site, entries(found.at(site), row_Q, entry_QB), new_QTB)
        changed_QT = (change != 0).any(2)
        first_Q = changed_QT.int().argmax(1)
        in_place = found.stays_in_place(site)
        num_reached_Q = changed_QT.sum(1) if in_place else changed_QT.shape[1] - first_Q
        # A batch is propagated from its earliest change, so pairs of similar first position share
        # a batch.
        order = first_Q.argsort(stable=True)
        order = order[changed_QT.any(1)[order]]
        parts = (subject_Q, row_Q, entry_QB, new_QTB, change, first_Q, num_reached_Q)
        return cls(site, *(part[order] for part in parts))

    def batches(self, most: int) -> Iterator["Edit[Site]"]:
        """Split into edits that reach about ``most`` hidden states each."""
        parts = [part for name, part in vars(self).items() if name != "site"]
        sizes = (self.num_reached_Q.cumsum(0) // most).bincount().tolist()
        for pieces in zip(*(part.split(sizes) for part in parts), strict=True):
            if len(pieces[0]):
                yield Edit(self.site, *pieces)


class ReachedStates(NamedTuple):
    """The last hidden states that an edit can change."""

    pair_M: Tensor
    """Index into the pairs of the edit."""
    position_M: Tensor
    hidden_MD: Tensor


def entries(
    state_NTC: Tensor, row_Q: Tensor, entry_QB: Tensor, position_QT: Tensor | None = None
) -> Tensor:
    """Gather entries of a state for some rows, [Q, T, B].

    Without ``position_QT``, entry t of the result comes from position t.
    """
    if position_QT is None:
        position_QT = torch.arange(state_NTC.shape[1], device=row_Q.device)[None]
    return state_NTC[row_Q[:, None, None], position_QT[:, :, None], entry_QB[:, None, :]]
