"""From hidden states to predictions and probabilities, and when a prediction needs no logits.

With hidden state h and another one h', and prediction v* ahead of the next token by a margin m, no
token v can overtake it at h' unless (w_v - w_v*)·(h' - h) ≥ m. So the prediction stands if
m > max_v ‖w_v - w_v*‖ · ‖h' - h‖, with an allowance for rounding on top.

Shapes: M position, D width, V token of the vocabulary.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

LOGIT_BYTES = 8 * 2**20
"""Logits held at once, always in the same place: fresh memory and caches that overflow cost more
than the product itself."""
ROUNDING = 8 * 2.0**-24
"""Allowance per term of a dot product, relative to ‖w‖‖h‖.

A dot product of D float32 terms is off by at most D · 2^-24 · ‖w‖‖h‖. Two margins compare four of
them; as much again is room for h' itself to be rounded in another order than elsewhere.
"""
FAR = 50.0
"""How far off a guess of log Σ exp may be, nats; what counts then stays an ordinary float32."""


class Unembedding:
    """The last layer of a language model."""

    def __init__(self, decoder: nn.Linear) -> None:
        self.weight_VD, self.bias_V = decoder.weight, decoder.bias
        self.rows_at_once = max(1, LOGIT_BYTES // (4 * len(self.weight_VD)))
        self.logit_MV = self.weight_VD.new_empty(self.rows_at_once, len(self.weight_VD))
        self.reach_V = torch.full_like(self.bias_V, math.nan)
        """max_v ‖w_v - w_token‖ of each token; NaN where it was not needed yet."""
        self.largest_weight = self.weight_VD.norm(dim=1).max()
        self.largest_bias = self.bias_V.abs().max()

    def predict(self, hidden_MD: Tensor) -> Tensor:
        """The most likely token, the first if several are, [M]."""
        return torch.cat([logit_MV.max(1).indices for logit_MV in self.logits(hidden_MD)])

    def predict_with_margin(self, hidden_MD: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely token and how far its logit is above the next one, both [M]."""
        tokens, margins = [], []
        for logit_MV in self.logits(hidden_MD):
            best_M, token_M = logit_MV.max(1)
            logit_MV.scatter_(1, token_M[:, None], -math.inf)
            tokens.append(token_M)
            margins.append(best_M - logit_MV.amax(1))
        return torch.cat(tokens), torch.cat(margins)

    def log_probability(
        self, hidden_MD: Tensor, target_M: Tensor, near_M: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p(target) and log Σ exp(logit), nats, both [M].

        ``near_M`` may say about where the latter is, which saves a pass over the logits. Where it
        is too far off for float32, the guess is dropped.
        """
        targets, normalisers = [hidden_MD.new_empty(0)], [hidden_MD.new_empty(0)]
        start = 0
        for logit_MV in self.logits(hidden_MD):
            some = slice(start, start := start + len(logit_MV))
            targets.append(logit_MV.gather(1, target_M[some, None])[:, 0])
            peak_M = logit_MV.amax(1) if near_M is None else near_M[some]
            sum_M = logit_MV.sub_(peak_M[:, None]).exp_().sum(1)
            normalisers.append(peak_M + sum_M.log())
        logit_M, normaliser_M = torch.cat(targets), torch.cat(normalisers)
        if near_M is not None and (far_M := ~((normaliser_M - near_M).abs() < FAR)).any():
            normaliser_M[far_M] = self.log_probability(hidden_MD[far_M], target_M[far_M])[1]
        return logit_M - normaliser_M, normaliser_M

    def logits(self, hidden_MD: Tensor) -> Iterator[Tensor]:
        """Logits of a bounded number of positions at a time; each piece overwrites the last."""
        for some_MD in hidden_MD.split(self.rows_at_once):
            out_MV = self.logit_MV[: len(some_MD)]
            yield torch.addmm(self.bias_V, some_MD, self.weight_VD.T, out=out_MV)

    def certain(
        self, token_M: Tensor, margin_M: Tensor, hidden_MD: Tensor, moved_M: Tensor
    ) -> Tensor:
        """Whether a prediction at ``hidden_MD`` with this margin outlives a move so long, [M]."""
        size_M = hidden_MD.norm(dim=1) + moved_M
        logit_M = self.largest_weight * size_M + self.largest_bias
        slack_M = ROUNDING * self.weight_VD.shape[1] * logit_M
        return margin_M > self.reach(token_M) * moved_M + slack_M

    def reach(self, token_M: Tensor) -> Tensor:
        """max_v ‖w_v - w_token‖, [M]; computed once for every token that is ever predicted."""
        token = token_M.unique()
        token = token[self.reach_V[token].isnan()]
        for some in token.split(self.rows_at_once):
            self.reach_V[some] = torch.cdist(self.weight_VD[some], self.weight_VD).amax(1)
        return self.reach_V[token_M]
