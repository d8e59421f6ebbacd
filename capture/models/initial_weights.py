"""Initial weights of the study's language model."""

import math
from typing import Any

from torch import Generator, nn


def initialise_weights(model: Any, generator: Generator) -> None:
    """Draw the weights of a ``LanguageModel``.

    Layers get torch's defaults; tokens, positions and unembedding are uniform. Torch's
    ``TransformerEncoder`` copies one initialized layer; here every layer is drawn separately.
    """
    bound = model.config.init_range
    nn.init.uniform_(model.encoder.weight, -bound, bound, generator)
    for layer in model.layers:
        initialise_layer(layer, generator)
    nn.init.uniform_(model.decoder.weight, -bound, bound, generator)
    nn.init.zeros_(model.decoder.bias)
    if model.learns_positions:
        nn.init.uniform_(model.positions.weight, -bound, bound, generator)


def initialise_layer(layer: Any, generator: Generator) -> None:
    """Draw the weights of attention and MLP; a fresh LayerNorm needs none."""
    attention = layer.self_attn
    nn.init.xavier_uniform_(attention.in_proj_weight, generator=generator)
    nn.init.zeros_(attention.in_proj_bias)
    init_linear(attention.out_proj, generator)
    nn.init.zeros_(attention.out_proj.bias)
    if layer.has_mlp:
        init_linear(layer.linear1, generator)
        init_linear(layer.linear2, generator)


def init_linear(linear: nn.Linear, generator: Generator) -> None:
    """Apply torch's default for ``nn.Linear``: weight and bias uniform in ±1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(linear.in_features)
    nn.init.uniform_(linear.weight, -bound, bound, generator)
    nn.init.uniform_(linear.bias, -bound, bound, generator)
