"""Logit lens: what the unembedding reads from the residual stream after each layer.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens". Shapes: N datum, T position,
V vocabulary, L state.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from analysis.trajectory.metrics.prediction import unigram_nulls
from analysis.trajectory.metrics.row import Row, mean_row, state_name
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.passes import batches, cross_entropy
from analysis.trajectory.observed.text import Text


def logit_lens(model: Observed, text: Text) -> Iterator[Row]:
    """Loss of the prediction read after each layer, and its distance from the final one.

    ``logit_lens``: cross-entropy of held-out targets, nats per token; null: a unigram model.
    ``logit_lens_kl``: KL(final prediction ‖ prediction read there), nats; 0 after the last layer.
    """
    assert text.held_out
    scored = 0
    losses: list[list[np.ndarray]] = [[] for _ in range(len(model.blocks) + 1)]
    distances: list[list[np.ndarray]] = [[] for _ in losses]
    for batch in batches(text.held_out, text.num_tokens):
        states = [
            state_NTD[:, model.scored]
            for state_NTD in model.states(torch.from_numpy(batch.token_NT))
        ]
        scored = states[-1].shape[1]
        final_NTV = model.read(states[-1]).log_softmax(2)
        for number, state_NTD in enumerate(states):
            logits_NTV = model.read(state_NTD)
            losses[number].append(cross_entropy(logits_NTV, torch.from_numpy(batch.target_NT)))
            distances[number].append(divergence(final_NTV, logits_NTV.log_softmax(2)))
    null = unigram_nulls(text, scored)["loss"]
    for number, loss in enumerate(losses):
        yield mean_row("logit_lens", state_name(number), np.concatenate(loss).mean(1), null)
    for number, distance in enumerate(distances):
        yield mean_row("logit_lens_kl", state_name(number), np.concatenate(distance).mean(1))


def divergence(log_p_NTV: Tensor, log_q_NTV: Tensor) -> np.ndarray:
    """Return KL(p ‖ q) at each position, nats, float64 [N, T]."""
    return (log_p_NTV.exp() * (log_p_NTV - log_q_NTV)).sum(2).double().cpu().numpy()
