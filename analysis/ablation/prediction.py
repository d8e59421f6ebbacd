"""Predictions after a hidden state has moved, mostly without the logits of the whole vocabulary.

With hidden state h and another one h', and prediction v* whose logit is ahead of token v's by a
margin m_v, v can overtake it at h' only if (w_v - w_v*)·(h' - h) ≥ m_v, so never where
m_v > max_v ‖w_v - w_v*‖ · ‖h' - h‖ and an allowance for rounding on top. If that holds for the
runner-up, the prediction stands. If it holds for all tokens but a few rivals, only their logits are
computed. Else all are.

Shapes: M position, K rival, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from analysis.ablation.unembedding import Unembedding

NUM_CANDIDATES = 32
"""Tokens that are looked at one by one."""


class Prediction(NamedTuple):
    """What is predicted at some positions, and how much it takes to change that."""

    token_M: Tensor
    rival_MK: Tensor
    """The most likely tokens, among them the predicted one; ids ascending."""
    margin_M: Tensor
    """How far the predicted token's logit is above the next one."""
    gap_M: Tensor
    """How far it is above that of every token that is no rival; ∞ if all are."""
    reach_M: Tensor
    """max_v ‖w_v - w_token‖."""
    hidden_MD: Tensor

    @classmethod
    def of(cls, unembedding: Unembedding, hidden_MD: Tensor) -> "Prediction":
        token_MK, behind_MK = unembedding.leaders(hidden_MD, NUM_CANDIDATES + 1)
        gap_M = behind_MK[:, -1]
        if token_MK.shape[1] <= NUM_CANDIDATES:
            gap_M = torch.full_like(gap_M, torch.inf)
        token_M, rival_MK = token_MK[:, 0], token_MK[:, :NUM_CANDIDATES].sort(1).values
        margin_M, reach_M = behind_MK[:, 1], unembedding.reach(token_M)
        return cls(token_M, rival_MK, margin_M, gap_M, reach_M, hidden_MD)

    def after(
        self, unembedding: Unembedding, place_L: Tensor, hidden_LD: Tensor
    ) -> tuple[Tensor, int]:
        """The tokens predicted where the hidden states of some positions have become others, [L].

        And for how many of these all logits were needed.
        """
        bound_L = self.bound(unembedding, place_L, hidden_LD)
        token_L = self.token_M[place_L]
        open_L = self.margin_M[place_L] <= bound_L
        among_L = open_L & (self.gap_M[place_L] > bound_L)
        rival = self.rival_MK[place_L[among_L]]
        token_L[among_L] = unembedding.predict_one_of(rival, hidden_LD[among_L])
        all_L = open_L & ~among_L
        token_L[all_L] = unembedding.predict(hidden_LD[all_L])
        return token_L, int(all_L.sum())

    def bound(self, unembedding: Unembedding, place_L: Tensor, hidden_LD: Tensor) -> Tensor:
        """By how much a token can have gained on the predicted one, at most, [L]."""
        clean_LD = self.hidden_MD[place_L]
        moved_L = (hidden_LD - clean_LD).norm(dim=1)
        slack_L = unembedding.slack(clean_LD.norm(dim=1) + moved_L)
        return self.reach_M[place_L] * moved_L + slack_L
