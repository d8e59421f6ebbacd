"""Predictions and log-probabilities from hidden states, with a bounded number of logits in memory.

Shapes: M position, K some tokens per position, D width, V token of the vocabulary.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from capture.parts.found_parts import LogitMap

LOGIT_BYTES = 8 * 2**20
"""Size of the buffer of logits, which every pass reuses: allocating memory and missing the caches
cost more time than the matrix product itself."""
ROUNDING = 8 * 2.0**-24
"""Allowance per term of a dot product, relative to ‖w‖‖h‖.

The rounding error of a dot product of D float32 terms is at most D · 2^-24 · ‖w‖‖h‖. Comparing two
margins involves four dot products. The other factor of two allows for h' itself, whose sums may be
rounded in another order than in a naive forward pass.
"""
IDENTITY = LogitMap()
MAX_GUESS_ERROR = 50.0
"""Largest accepted error of a guess of log Σ exp, nats: within it exp neither overflows nor
underflows in float32."""


class Unembedding:
    """The output layer of a language model, with a reused buffer of logits.

    ``logit_map`` is what the model does to the logits, a rising function: probabilities depend on
    it, the most likely tokens do not.
    """

    def __init__(self, weight_VD: Tensor, bias_V: Tensor, logit_map: LogitMap = IDENTITY) -> None:
        self.weight_VD, self.bias_V, self.logit_map = weight_VD, bias_V, logit_map
        self.rows_at_once = max(1, LOGIT_BYTES // (4 * len(self.weight_VD)))
        self.logit_MV = self.weight_VD.new_empty(self.rows_at_once, len(self.weight_VD))
        self.max_distance_V = torch.full_like(self.bias_V, math.nan)
        """max_v ‖w_v − w_token‖ of each token; NaN until it is computed."""
        self.largest_weight = self.weight_VD.norm(dim=1).max()
        self.largest_bias = self.bias_V.abs().max()

    def predict(self, hidden_MD: Tensor) -> Tensor:
        """Return the most likely token of each position, ties to the lowest id, [M]."""
        return torch.cat([logit_MV.max(1).indices for logit_MV in self.logits(hidden_MD)])

    def predict_one_of(self, token_MK: Tensor, hidden_MD: Tensor) -> Tensor:
        """Return the most likely of each position's given tokens (ids ascending), [M]."""
        found = [token_MK.new_empty(0)]
        rows = max(1, LOGIT_BYTES // (4 * token_MK.shape[1] * self.weight_VD.shape[1]))
        for some_MK, some_MD in zip(token_MK.split(rows), hidden_MD.split(rows), strict=True):
            weight_MKD = F.embedding(some_MK, self.weight_VD)
            logit_MK = torch.einsum("mkd,md->mk", weight_MKD, some_MD) + self.bias_V[some_MK]
            found.append(some_MK.gather(1, logit_MK.argmax(1, keepdim=True))[:, 0])
        return torch.cat(found)

    def top_tokens(self, hidden_MD: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return the most likely tokens and the largest logit minus theirs, both [M, K]."""
        tokens, behind = [], []
        for logit_MV in self.logits(hidden_MD):
            value_MK, token_MK = logit_MV.topk(min(number, logit_MV.shape[1]), dim=1)
            tokens.append(token_MK)
            behind.append(value_MK[:, :1] - value_MK)
        return torch.cat(tokens), torch.cat(behind)

    def log_probability(
        self, hidden_MD: Tensor, target_M: Tensor, guess_M: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return log p(target) and log Σ exp(logit), nats, both [M].

        ``guess_M`` approximates the latter and saves the pass over the logits that finds their
        maximum. Positions whose guess is off by ``MAX_GUESS_ERROR`` or more are computed again
        without it.
        """
        targets, normalisers = [hidden_MD.new_empty(0)], [hidden_MD.new_empty(0)]
        start = 0
        for linear_MV in self.logits(hidden_MD):
            logit_MV = self.logit_map(linear_MV)
            some = slice(start, start := start + len(logit_MV))
            targets.append(logit_MV.gather(1, target_M[some, None])[:, 0])
            # log Σ exp(x) = c + log Σ exp(x − c) for any c; c only has to keep exp within range.
            center_M = logit_MV.amax(1) if guess_M is None else guess_M[some]
            sum_M = logit_MV.sub_(center_M[:, None]).exp_().sum(1)
            normalisers.append(center_M + sum_M.log())
        logit_M, normaliser_M = torch.cat(targets), torch.cat(normalisers)
        if guess_M is not None:
            # The negated comparison also catches NaN and ∞, which a very wrong guess produces.
            wrong_M = ~((normaliser_M - guess_M).abs() < MAX_GUESS_ERROR)
            if wrong_M.any():
                again = self.log_probability(hidden_MD[wrong_M], target_M[wrong_M])
                normaliser_M[wrong_M] = again[1]
        return logit_M - normaliser_M, normaliser_M

    def logits(self, hidden_MD: Tensor) -> Iterator[Tensor]:
        """Yield logits, [≤ rows_at_once, V]; each piece overwrites the one before."""
        for some_MD in hidden_MD.split(self.rows_at_once):
            out_MV = self.logit_MV[: len(some_MD)]
            yield torch.addmm(self.bias_V, some_MD, self.weight_VD.T, out=out_MV)

    def max_distance(self, token_M: Tensor) -> Tensor:
        """Return max_v ‖w_v − w_token‖, [M]; computed once per token and kept."""
        token = token_M.unique()
        token = token[self.max_distance_V[token].isnan()]
        for some in token.split(self.rows_at_once):
            distance = torch.cdist(self.weight_VD[some], self.weight_VD)
            self.max_distance_V[some] = distance.amax(1)
        return self.max_distance_V[token_M]

    def rounding_allowance(self, norm_M: Tensor) -> Tensor:
        """Return how much rounding can change a margin, for hidden states of these norms, [M]."""
        logit_M = self.largest_weight * norm_M + self.largest_bias
        return ROUNDING * self.weight_VD.shape[1] * logit_M
