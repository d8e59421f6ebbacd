"""Values that replace ablated entries: zero weights, the mean, or a resampled value.

- ``zero``: what zero weights leave, namely 0, or the bias of a row.
- ``mean``: the entry's mean over all positions of a text.
- ``resample``: the entry's value at a random other position. Each datum of the evaluated text has
  another datum as its source, and each of its positions takes the value at a random position of
  that source. The seed alone decides both, so results depend neither on the other subjects nor on
  the batch size.

Shapes: N datum of the text, K some of them, T position, C entry of a state, G subject of one site,
B entry of a subject, Q (subject, datum) pair.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from analysis.ablation.ablatable import (
    device_of,
    place_of,
    require_subjects,
    trace,
    zero_values,
)
from analysis.ablation.edits import Edit, Traced, entries
from analysis.ablation.subjects import Subject
from capture.parts import KnownModel

Value = Literal["zero", "mean", "resample"]
VALUES: tuple[Value, ...] = ("zero", "mean", "resample")
DATUMS_AT_ONCE = 128
"""Datums whose intermediate states are in memory at once."""


@dataclass(frozen=True, eq=False)
class SubjectGroup:
    """The subjects of one site (heads in a group of their own) and their replacement values."""

    site: Any
    subject_G: Tensor
    """Indices into the list of subjects, ascending."""
    entry_GB: Tensor
    constant_GB: Tensor
    """Replacement at every position; unused if values are resampled."""

    def to(self, device: str) -> "SubjectGroup":
        tensors = (self.subject_G, self.entry_GB, self.constant_GB)
        return SubjectGroup(self.site, *(tensor.to(device) for tensor in tensors))

    def edit(
        self, found: Traced, resampled: "ResampledStates | None", group_Q: Tensor, row_Q: Tensor
    ) -> Edit:
        """Return the edit for pairs of a subject (index into the group) and a traced datum."""
        entry_QB = self.entry_GB[group_Q]
        if resampled is None:
            positions = found.hidden_NTD.shape[1]
            new_QTB = self.constant_GB[group_Q][:, None].expand(-1, positions, -1)
        else:
            new_QTB = resampled.entries(self.site, row_Q, entry_QB)
        return Edit.of(found, self.site, self.subject_G[group_Q], row_Q, entry_QB, new_QTB)


@dataclass(frozen=True, eq=False)
class ResamplingSources:
    """The datum and the positions that each datum's resampled values come from."""

    datum_N: np.ndarray
    """Source datum of each datum."""
    position_NT: np.ndarray
    """Position within the source datum, for each position."""

    @classmethod
    def draw(cls, shape_NT: tuple[int, ...], seed: int) -> "ResamplingSources":
        """Draw sources for a text of this shape; a text of one datum is its own source."""
        num_datums, positions = shape_NT
        rng = np.random.default_rng(seed)
        # Each datum takes the previous one of a random ring: never itself, every datum used once.
        ring = rng.permutation(num_datums)
        datum_N = np.empty(num_datums, int)
        datum_N[ring] = np.roll(ring, 1)
        return cls(datum_N, rng.integers(positions, size=shape_NT))


@dataclass(frozen=True, eq=False)
class ResampledStates:
    """The intermediate states of the source datums of some datums."""

    sources: Traced
    position_KT: Tensor

    def entries(self, site: Any, row_Q: Tensor, entry_QB: Tensor) -> Tensor:
        """Return each pair's entries at its source positions, [Q, T, B]."""
        return entries(self.sources.at(site), row_Q, entry_QB, self.position_KT[row_Q])


@dataclass(frozen=True, eq=False)
class AblationPlan:
    """The subjects to ablate on a text, grouped by site, and their replacement values."""

    groups: tuple[SubjectGroup, ...]
    sources: ResamplingSources | None
    """Sources of the text's datums; None unless values are resampled."""

    @classmethod
    def of(
        cls,
        model: KnownModel,
        token_NT: np.ndarray,
        subjects: Sequence[Subject],
        value: Value,
        mean_text_NT: np.ndarray,
        seed: int = 0,
    ) -> "AblationPlan":
        """Plan the ablation of subjects on ``token_NT``; means are over ``mean_text_NT``.

        Raises ``UnitError`` for a subject that the model does not have.
        """
        require_subjects(model, subjects)
        device = device_of(model)
        # A head has several entries, a column or row one: tensors [G, B] cannot mix them.
        places = [place_of(model, subject) for subject in subjects]
        pairs = zip(subjects, places, strict=True)
        kinds = [(site, subject.level == "head") for subject, (site, _) in pairs]
        sites = {site for site, _ in kinds}
        means = mean_states(model, mean_text_NT, sites) if value == "mean" else {}
        zero_S = zero_values(model, subjects) if value == "zero" else []
        groups = []
        for site, heads in sorted(set(kinds)):
            own = [s for s, kind in enumerate(kinds) if kind == (site, heads)]
            entry_GB = torch.tensor([places[s][1] for s in own], device=device)
            if value == "mean":
                constant_GB = means[site][entry_GB]
            elif value == "zero":
                zero_G1 = torch.tensor([[zero_S[s]] for s in own], device=device)
                constant_GB = zero_G1.expand_as(entry_GB)
            else:
                constant_GB = torch.zeros(entry_GB.shape, device=device)
            own_G = torch.tensor(own, device=device)
            groups.append(SubjectGroup(site, own_G, entry_GB, constant_GB))
        sources = ResamplingSources.draw(token_NT.shape, seed) if value == "resample" else None
        return cls(tuple(groups), sources)

    @property
    def sites(self) -> set[Any]:
        """The states that the subjects lie in."""
        return {group.site for group in self.groups}

    def to(self, device: str) -> "AblationPlan":
        return AblationPlan(tuple(group.to(device) for group in self.groups), self.sources)

    def resampled_states(
        self, model: KnownModel, token_NT: np.ndarray, datum_K: np.ndarray
    ) -> ResampledStates | None:
        """Return the source states of some datums of the text; None unless values are resampled."""
        if self.sources is None:
            return None
        found = trace(model, token_NT[self.sources.datum_N[datum_K]], self.sites)
        position_KT = torch.from_numpy(self.sources.position_NT[datum_K])
        return ResampledStates(found, position_KT.to(found.hidden_NTD.device))


def mean_states(
    model: KnownModel, token_NT: np.ndarray, sites: Collection[Any]
) -> dict[Any, Tensor]:
    """Return the mean of each state over all positions of a text, [C]."""
    sums: dict[Any, Tensor] = {}
    for found in traces(model, token_NT, sites):
        for site in sites:
            sum_C = found.at(site).sum((0, 1), dtype=torch.float64)
            sums[site] = sums[site] + sum_C if site in sums else sum_C
    return {site: (sum_C / token_NT.size).float() for site, sum_C in sums.items()}


def traces(model: KnownModel, token_NT: np.ndarray, sites: Collection[Any]) -> Iterator[Traced]:
    """Trace all datums, ``DATUMS_AT_ONCE`` at a time."""
    for start in range(0, len(token_NT), DATUMS_AT_ONCE):
        yield trace(model, token_NT[start : start + DATUMS_AT_ONCE], sites)
