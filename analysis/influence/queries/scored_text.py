"""Weighted sums of log-probabilities over text, the core of all queries about predictions.

Shapes: N datum, T position, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.influence.queries.material import QueryMaterial, as_tokens
from analysis.influence.queries.query import Part, Weights

DATUMS_AT_ONCE = 16
"""Datums of one part, whose logits are in memory at once."""
Logits = Callable[[Weights, Tensor], Tensor]
"""Weights and input tokens [N, T] in, logits [N, T, V] out."""


@dataclass(frozen=True, eq=False)
class ScoredText:
    """Input tokens, targets and the weight of each target's log-probability, all [N, T]."""

    token_NT: Tensor
    target_NT: Tensor
    weight_NT: Tensor
    """float64"""

    @classmethod
    def mean(
        cls, token_NT: np.ndarray, target_NT: np.ndarray, scored_NT: np.ndarray, sign: float = 1.0
    ) -> "ScoredText":
        """Score a text by ``sign`` times the mean log-probability at the scored positions (bool).

        Datums without a scored position are left out. At least one position must be scored.
        """
        used_N = scored_NT.any(1)
        weight_NT = sign * scored_NT[used_N] / scored_NT.sum()
        return cls(
            as_tokens(token_NT[used_N]), as_tokens(target_NT[used_N]), torch.from_numpy(weight_NT)
        )

    @classmethod
    def ending(cls, prompt: Sequence[int], completion: Sequence[int]) -> "ScoredText":
        """Score the completion by the sum of its tokens' log-probabilities after the prompt."""
        stream = [*prompt, *completion]
        weight_T = torch.zeros(len(stream) - 1, dtype=torch.float64)
        weight_T[len(prompt) - 1 :] = 1.0
        return cls(as_tokens([stream[:-1]]), as_tokens([stream[1:]]), weight_T[None])

    def times(self, factor: float) -> "ScoredText":
        return ScoredText(self.token_NT, self.target_NT, factor * self.weight_NT)

    def parts(self, material: QueryMaterial, logits: Logits | None = None) -> list[Part]:
        """Return functions of the weights that sum to Σ weight · log p(target).

        ``logits``: the model's own by default; another function for an ablated model.
        """
        pieces = zip(
            self.token_NT.split(DATUMS_AT_ONCE),
            self.target_NT.split(DATUMS_AT_ONCE),
            self.weight_NT.split(DATUMS_AT_ONCE),
            strict=True,
        )
        own = logits or material.logits
        return [partial(weighted_log_probability, own, *piece) for piece in pieces]


def weighted_log_probability(
    logits: Logits, token_NT: Tensor, target_NT: Tensor, weight_NT: Tensor, weights: Weights
) -> Tensor:
    """Return Σ weight · log p(target) over all positions, in nats."""
    log_p_NT = log_probabilities(logits(weights, token_NT), target_NT)
    return (weight_NT[:, -log_p_NT.shape[1] :].to(log_p_NT) * log_p_NT).sum()


def log_probabilities(logits_NTV: Tensor, target_NT: Tensor) -> Tensor:
    """Return log p(target) at every position with logits, nats, [N, T]; at least float32.

    The model of a task returns logits of the last positions of a window alone.
    """
    target_NT = target_NT[:, -logits_NTV.shape[1] :]
    if logits_NTV.dtype in (torch.float16, torch.bfloat16):
        logits_NTV = logits_NTV.float()
    target_M = target_NT.to(logits_NTV.device).flatten()
    loss_M = F.cross_entropy(logits_NTV.flatten(0, 1), target_M, reduction="none")
    return -loss_M.view(target_NT.shape)
