"""What stands in for an ablated entry: nothing, its mean, or its value somewhere else in the text.

*zero* is what zero weights leave: 0, or the bias of a row. *mean* is the entry's mean over all
positions of a text. *resample* is the entry's value at a random other position: each datum of the
evaluated text has another one as its donor, and each of its positions one of the donor's, all by
the seed alone, so that neither the other subjects nor the size of a batch plays a part.

Shapes: N datum of the text, K some of them, T position, C entry of a state, G subject of one place,
B entry of a subject, Q pair of subject and datum.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from analysis.ablation.propagation import Edit, Trace, entries, trace
from analysis.ablation.subjects import (
    Subject,
    SubjectSite,
    entries_of,
    require_subjects,
    site_of,
    zero_ablation_value,
)
from capture.models.transformer import LanguageModel

Value = Literal["zero", "mean", "resample"]
VALUES: tuple[Value, ...] = ("zero", "mean", "resample")
DATUMS_AT_ONCE = 128
"""Datums whose inner states are held at once."""


@dataclass(frozen=True, eq=False)
class SubjectGroup:
    """The subjects of one place (heads apart), and what replaces their entries."""

    place: SubjectSite
    subject_G: Tensor
    """Places in the list of subjects, ascending."""
    entry_GB: Tensor
    same_GB: Tensor
    """What replaces them everywhere; not used if values are lent."""

    def to(self, device: str) -> "SubjectGroup":
        tensors = (self.subject_G, self.entry_GB, self.same_GB)
        return SubjectGroup(self.place, *(tensor.to(device) for tensor in tensors))

    def edit(
        self, found: Trace, lender: "ResampledStates | None", group_Q: Tensor, row_Q: Tensor
    ) -> Edit:
        """The edit of these pairs: of a subject, by its place in the group, and a traced datum."""
        entry_QB = self.entry_GB[group_Q]
        if lender is None:
            positions = found.hidden_NTD.shape[1]
            new_QTB = self.same_GB[group_Q][:, None].expand(-1, positions, -1)
        else:
            new_QTB = lender.entries(self.place, row_Q, entry_QB)
        return Edit.of(found, self.place, self.subject_G[group_Q], row_Q, entry_QB, new_QTB)


@dataclass(frozen=True, eq=False)
class ResamplingSources:
    """Where the values of each datum are taken from."""

    datum_N: np.ndarray
    """Another datum of the text."""
    position_NT: np.ndarray
    """For each position, one of that datum's."""

    @classmethod
    def draw(cls, shape_NT: tuple[int, ...], seed: int) -> "ResamplingSources":
        """A ring of all datums in random order; positions uniformly. One datum is its own donor."""
        num_datums, positions = shape_NT
        rng = np.random.default_rng(seed)
        ring = rng.permutation(num_datums)
        datum_N = np.empty(num_datums, int)
        datum_N[ring] = np.roll(ring, 1)
        return cls(datum_N, rng.integers(positions, size=shape_NT))


@dataclass(frozen=True, eq=False)
class ResampledStates:
    """The donors' states, for some datums."""

    donors: Trace
    position_KT: Tensor

    def entries(self, place: SubjectSite, row_Q: Tensor, entry_QB: Tensor) -> Tensor:
        """What stands in each pair's entries at the donor's positions, [Q, T, B]."""
        return entries(self.donors.at(place), row_Q, entry_QB, self.position_KT[row_Q])


@dataclass(frozen=True, eq=False)
class AblationPlan:
    """How some subjects are ablated on some text."""

    groups: tuple[SubjectGroup, ...]
    donors: ResamplingSources | None

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        token_NT: np.ndarray,
        subjects: Sequence[Subject],
        value: Value,
        mean_text_NT: np.ndarray,
        seed: int = 0,
    ) -> "AblationPlan":
        """``mean_text_NT`` is the text that means are taken over.

        Raises ``UnitError`` for a subject that the model lacks.
        """
        require_subjects(model, subjects)
        device = model.decoder.weight.device
        kinds = [(site_of(subject), subject.level == "head") for subject in subjects]
        places = {place for place, _ in kinds}
        means = mean_states(model, mean_text_NT, places) if value == "mean" else {}
        groups = []
        for place, heads in sorted(set(kinds)):
            own = [s for s, kind in enumerate(kinds) if kind == (place, heads)]
            entry_GB = torch.tensor([entries_of(model, subjects[s]) for s in own], device=device)
            rest_G1 = torch.tensor(
                [[zero_ablation_value(model, subjects[s])] for s in own], device=device
            )
            same_GB = means[place][entry_GB] if value == "mean" else rest_G1.expand_as(entry_GB)
            groups.append(SubjectGroup(place, torch.tensor(own, device=device), entry_GB, same_GB))
        donors = ResamplingSources.draw(token_NT.shape, seed) if value == "resample" else None
        return cls(tuple(groups), donors)

    def to(self, device: str) -> "AblationPlan":
        return AblationPlan(tuple(group.to(device) for group in self.groups), self.donors)

    def lender(
        self, model: LanguageModel, token_NT: np.ndarray, datum_K: np.ndarray
    ) -> ResampledStates | None:
        """What is lent to these datums of the text, if anything is."""
        if self.donors is None:
            return None
        lent = trace(model, token_NT[self.donors.datum_N[datum_K]])
        position_KT = torch.from_numpy(self.donors.position_NT[datum_K])
        return ResampledStates(lent, position_KT.to(lent.hidden_NTD.device))


def mean_states(
    model: LanguageModel, token_NT: np.ndarray, places: Collection[SubjectSite]
) -> dict[SubjectSite, Tensor]:
    """The mean of each state over all positions of a text, [C]."""
    sums: dict[SubjectSite, Tensor] = {}
    for found in traces(model, token_NT):
        for place in places:
            sum_C = found.at(place).sum((0, 1), dtype=torch.float64)
            sums[place] = sums[place] + sum_C if place in sums else sum_C
    return {place: (sum_C / token_NT.size).float() for place, sum_C in sums.items()}


def traces(model: LanguageModel, token_NT: np.ndarray) -> Iterator[Trace]:
    """All datums, a bounded number at a time."""
    for start in range(0, len(token_NT), DATUMS_AT_ONCE):
        yield trace(model, token_NT[start : start + DATUMS_AT_ONCE])
