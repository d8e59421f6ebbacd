"""From hidden states to predictions and probabilities, a bounded number of logits at a time.

Shapes: M position, K some tokens of each position, D width, V token of the vocabulary.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOGIT_BYTES = 8 * 2**20
"""Logits held at once, always in the same place: fresh memory and caches that overflow cost more
than the product itself."""
ROUNDING = 8 * 2.0**-24
"""Allowance per term of a dot product, relative to ‖w‖‖h‖.

A dot product of D float32 terms is off by at most D · 2^-24 · ‖w‖‖h‖. Two margins compare four of
them; as much again is room for h' itself to be rounded in another order than elsewhere.
"""
MAX_GUESS_ERROR = 50.0
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

    def predict_one_of(self, token_MK: Tensor, hidden_MD: Tensor) -> Tensor:
        """The most likely of each position's own tokens (ids ascending), [M]."""
        found = [token_MK.new_empty(0)]
        rows = max(1, LOGIT_BYTES // (4 * token_MK.shape[1] * self.weight_VD.shape[1]))
        for some_MK, some_MD in zip(token_MK.split(rows), hidden_MD.split(rows), strict=True):
            weight_MKD = F.embedding(some_MK, self.weight_VD)
            logit_MK = torch.einsum("mkd,md->mk", weight_MKD, some_MD) + self.bias_V[some_MK]
            found.append(some_MK.gather(1, logit_MK.argmax(1, keepdim=True))[:, 0])
        return torch.cat(found)

    def leaders(self, hidden_MD: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The most likely tokens, and how far the likeliest logit is above theirs, both [M, K]."""
        tokens, behind = [], []
        for logit_MV in self.logits(hidden_MD):
            value_MK, token_MK = logit_MV.topk(min(number, logit_MV.shape[1]), dim=1)
            tokens.append(token_MK)
            behind.append(value_MK[:, :1] - value_MK)
        return torch.cat(tokens), torch.cat(behind)

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
        if (
            near_M is not None
            and (far_M := ~((normaliser_M - near_M).abs() < MAX_GUESS_ERROR)).any()
        ):
            normaliser_M[far_M] = self.log_probability(hidden_MD[far_M], target_M[far_M])[1]
        return logit_M - normaliser_M, normaliser_M

    def logits(self, hidden_MD: Tensor) -> Iterator[Tensor]:
        """Logits of a bounded number of positions at a time; each piece overwrites the last."""
        for some_MD in hidden_MD.split(self.rows_at_once):
            out_MV = self.logit_MV[: len(some_MD)]
            yield torch.addmm(self.bias_V, some_MD, self.weight_VD.T, out=out_MV)

    def reach(self, token_M: Tensor) -> Tensor:
        """max_v ‖w_v - w_token‖, [M]; computed once for every token that is ever predicted."""
        token = token_M.unique()
        token = token[self.reach_V[token].isnan()]
        for some in token.split(self.rows_at_once):
            self.reach_V[some] = torch.cdist(self.weight_VD[some], self.weight_VD).amax(1)
        return self.reach_V[token_M]

    def slack(self, size_M: Tensor) -> Tensor:
        """How far rounding can part two margins, for hidden states of this norm, [M]."""
        logit_M = self.largest_weight * size_M + self.largest_bias
        return ROUNDING * self.weight_VD.shape[1] * logit_M
