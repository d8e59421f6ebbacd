"""Forward passes of any model with known parts, for ablation.

Every layer below an edit is computed once for all subjects: a pass with an edited state resumes at
the layer that holds it. (If a layer needs more than its input, whole passes are made.) Positions
before the first change are computed again, because nothing is assumed about attention.

Shapes: N datum, T position, C entry of a state, B changed entry, D width, Q (subject, datum) pair,
M position of any pair.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analysis.ablation.edits import Edit, ReachedStates
from capture.parts import Parted
from capture.parts.found_parts import PartSite
from capture.parts.parted import States

POSITIONS_AT_ONCE = 4096
"""Positions of the pairs that go through the layers together."""


@dataclass(frozen=True, eq=False)
class PartTrace:
    """The states of an ordinary forward pass that ablation needs."""

    token_NT: Tensor
    states: States

    @property
    def hidden_NTD(self) -> Tensor:
        return self.states.hidden_NTD

    @property
    def positions_at_once(self) -> int:
        return POSITIONS_AT_ONCE

    def at(self, site: PartSite) -> Tensor:
        """Return the state at a site, [N, T, C]."""
        return self.states.at[site]

    def effect(self, site: PartSite, old: Tensor, new: Tensor) -> Tensor:
        """Return the change that replacing some entries makes."""
        return new - old

    def stays_in_place(self, site: PartSite) -> bool:
        """Return whether a change reaches the unembedding at its own position alone."""
        return False


def trace(model: Parted, token_NT: np.ndarray, sites: Collection[PartSite]) -> PartTrace:
    """Run a forward pass; keep the states at the sites, and the inputs of their layers."""
    token = torch.from_numpy(token_NT).long().to(model.device)
    layers = {site.layer for site in sites if site.layer} if model.parts.resumable else set()
    return PartTrace(token, model.observe(token, sites, layers))


def propagate(model: Parted, found: PartTrace, edit: Edit[PartSite]) -> ReachedStates:
    """Return the last hidden states at every position of the edit's pairs."""
    entering = found.states.entering.get(edit.site.layer)
    state_QTD = None if entering is None else entering[edit.row_Q]

    def replaced(state_QTC: Tensor) -> Tensor:
        entry_QTB = edit.entry_QB[:, None, :].expand_as(edit.new_QTB)
        return state_QTC.scatter(2, entry_QTB, edit.new_QTB.to(state_QTC.dtype))

    hidden_QTD = model.resume(found.token_NT[edit.row_Q], edit.site, state_QTD, replaced)
    Q, T, D = hidden_QTD.shape
    pair_M = torch.arange(Q, device=hidden_QTD.device).repeat_interleave(T)
    position_M = torch.arange(T, device=hidden_QTD.device).repeat(Q)
    return ReachedStates(pair_M, position_M, hidden_QTD.reshape(Q * T, D))
