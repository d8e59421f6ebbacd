"""What held-out loss becomes without an attention head, or without a neuron.

Shapes: N datum, T position, C neuron.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from analysis.trajectory.metrics.row import Row, head_name, mean_row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.passes import cross_entropy, losses, unembedded
from analysis.trajectory.observed.text import Text, Windows
from capture.parts.found_parts import PartSite
from capture.parts.parted import Parted

MOST_DATUMS = 50
"""Every head takes one forward pass of them all."""
NEURON_DATUMS = 20
MOST_NEURONS = 32
"""Neurons of each layer."""


def head_ablation(model: Observed, text: Text) -> Iterator[Row]:
    """Increase of the held-out loss with one head's output set to zero, nats per token.

    The differences are taken datum by datum, on at most 50 datums. Null: 0.
    """
    assert text.held_out
    some = text.held_out.spread(MOST_DATUMS)
    clean_N = losses(model, some, text.num_tokens).mean(1)
    for layer in range(len(model.blocks)):
        for head in range(model.num_heads):
            with model.without_head(layer, head):
                ablated_N = losses(model, some, text.num_tokens).mean(1)
            yield mean_row("head_ablation", head_name(layer, head), ablated_N - clean_N, 0.0)


def neuron_ablation(model: Observed, text: Text) -> Iterator[Row]:
    """Increase of the held-out loss with one hidden neuron of an MLP set to zero, nats per token.

    Of each layer 32 neurons, evenly spread, or all if it has fewer; on at most 20 datums. Null: 0.
    """
    network = model.parted
    assert network
    assert text.held_out
    some = text.held_out.spread(NEURON_DATUMS)
    token_NT = torch.from_numpy(some.token_NT)
    layers = range(len(network.parts.layers)) if network.parts.resumable else ()
    states = network.observe(token_NT, layers=layers)
    clean_N = loss_of(model, network, states.hidden_NTD, some)
    for weight in filter(None, network.parts.mlp_out):
        use = network.parts.uses[weight]
        site = PartSite(use.layer, weight, "input")
        for neuron in spread_out(use.inputs, MOST_NEURONS):

            def zero(state_NTC: Tensor, neuron: int = neuron) -> Tensor:
                changed_NTC = state_NTC.clone()
                changed_NTC[..., neuron] = 0
                return changed_NTC

            hidden_NTD = network.resume(token_NT, site, states.entering.get(use.layer), zero)
            ablated_N = loss_of(model, network, hidden_NTD, some)
            yield mean_row("neuron_ablation", f"{weight}:{neuron}", ablated_N - clean_N, 0.0)


def loss_of(model: Observed, network: Parted, hidden_NTD: Tensor, windows: Windows) -> np.ndarray:
    """Return the mean loss of each datum from what enters the unembedding, [N]."""
    logits_NTV = unembedded(network, hidden_NTD)[:, model.scored]
    return cross_entropy(logits_NTV, torch.from_numpy(windows.target_NT)).mean(1)


def spread_out(count: int, most: int) -> list[int]:
    """Return at most so many of the numbers below ``count``, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
