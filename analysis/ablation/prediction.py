"""Predictions after a hidden state has changed, mostly without logits of the whole vocabulary.

Let v* be the token predicted at hidden state h, and m_v the margin of its logit over token v's. At
another hidden state h', token v can overtake v* only if (w_v − w_v*)·(h' − h) ≥ m_v. It therefore
cannot if m_v > max_v ‖w_v − w_v*‖ · ‖h' − h‖ plus an allowance for rounding. If that holds for the
second-ranked token, the prediction is unchanged. If it holds for every token except a few
candidates, only the candidates' logits are computed. Otherwise all logits are.

Shapes: M position, L position with a changed hidden state, K candidate, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from analysis.ablation.unembedding import Unembedding

NUM_CANDIDATES = 32
"""Most likely tokens of a position, whose logits can be computed one by one."""


class Prediction(NamedTuple):
    """The predicted tokens of some positions, and how large a change leaves them in place."""

    token_M: Tensor
    candidate_MK: Tensor
    """The most likely tokens, the predicted one among them; ids ascending."""
    margin_M: Tensor
    """Logit of the predicted token minus that of the second-ranked one."""
    gap_M: Tensor
    """Logit of the predicted token minus the largest of any non-candidate; ∞ if there is none."""
    distance_M: Tensor
    """max_v ‖w_v − w_token‖."""
    hidden_MD: Tensor

    @classmethod
    def of(cls, unembedding: Unembedding, hidden_MD: Tensor) -> "Prediction":
        """Predict from hidden states, with all logits."""
        token_MK, behind_MK = unembedding.top_tokens(hidden_MD, NUM_CANDIDATES + 1)
        gap_M = behind_MK[:, -1]
        if token_MK.shape[1] <= NUM_CANDIDATES:
            gap_M = torch.full_like(gap_M, torch.inf)
        token_M = token_MK[:, 0]
        # Ascending ids make an argmax over candidates break ties as an argmax over all tokens does.
        candidate_MK = token_MK[:, :NUM_CANDIDATES].sort(1).values
        margin_M, distance_M = behind_MK[:, 1], unembedding.max_distance(token_M)
        return cls(token_M, candidate_MK, margin_M, gap_M, distance_M, hidden_MD)

    def after(
        self, unembedding: Unembedding, index_L: Tensor, hidden_LD: Tensor
    ) -> tuple[Tensor, int]:
        """Return the tokens predicted at changed hidden states, [L], and the number of full passes.

        ``index_L`` says which position each changed state belongs to. A full pass computes the
        logits of the whole vocabulary for one position.
        """
        bound_L = self.bound(unembedding, index_L, hidden_LD)
        token_L = self.token_M[index_L]
        undecided_L = self.margin_M[index_L] <= bound_L
        among_L = undecided_L & (self.gap_M[index_L] > bound_L)
        candidates = self.candidate_MK[index_L[among_L]]
        token_L[among_L] = unembedding.predict_one_of(candidates, hidden_LD[among_L])
        full_L = undecided_L & ~among_L
        token_L[full_L] = unembedding.predict(hidden_LD[full_L])
        return token_L, int(full_L.sum())

    def bound(self, unembedding: Unembedding, index_L: Tensor, hidden_LD: Tensor) -> Tensor:
        """Return an upper bound on what any token gains on the predicted one, [L]."""
        clean_LD = self.hidden_MD[index_L]
        moved_L = (hidden_LD - clean_LD).norm(dim=1)
        # ‖h‖ + ‖h' − h‖ bounds the norm of both states, so one allowance covers both margins.
        allowance_L = unembedding.rounding_allowance(clean_LD.norm(dim=1) + moved_L)
        return self.distance_M[index_L] * moved_L + allowance_L
