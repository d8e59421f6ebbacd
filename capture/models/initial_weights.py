"""Initial weights of the study's language model."""

import math
from typing import Any

from torch import Generator, nn


def initialise_weights(model: Any, generator: Generator) -> None:
    """Draw the weights of a ``LanguageModel``; see ``ModelConfig.init``.

    Torch's ``TransformerEncoder`` copies one initialized layer; here every layer is drawn
    separately.
    """
    if model.config.init == "normal":
        draw_normal(model, generator)
        return
    bound = model.config.init_range
    nn.init.uniform_(model.encoder.weight, -bound, bound, generator)
    for layer in model.layers:
        initialise_layer(layer, generator)
    nn.init.uniform_(model.decoder.weight, -bound, bound, generator)
    nn.init.zeros_(model.decoder.bias)
    if model.learns_positions:
        nn.init.uniform_(model.positions.weight, -bound, bound, generator)


def draw_normal(model: Any, generator: Generator) -> None:
    """Draw every matrix from a normal distribution, and set biases to 0; LayerNorms stay fresh.

    Source: the code of Nanda et al. 2023, which draws the unembedding by the vocabulary's size.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            size = len(parameter) if name == "decoder.weight" else model.config.width
            nn.init.normal_(parameter, 0.0, size**-0.5, generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def initialise_layer(layer: Any, generator: Generator) -> None:
    """Draw the weights of attention and MLP; a fresh LayerNorm needs none."""
    attention = layer.self_attn
    nn.init.xavier_uniform_(attention.in_proj_weight, generator=generator)
    init_linear(attention.out_proj, generator)
    if layer.self_attn.in_proj_bias is not None:
        nn.init.zeros_(attention.in_proj_bias)
        nn.init.zeros_(attention.out_proj.bias)
    if layer.has_mlp:
        init_linear(layer.linear1, generator)
        init_linear(layer.linear2, generator)


def init_linear(linear: nn.Linear, generator: Generator) -> None:
    """Apply torch's default for ``nn.Linear``: weight and bias uniform in ±1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(linear.in_features)
    nn.init.uniform_(linear.weight, -bound, bound, generator)
    if linear.bias is not None:
        nn.init.uniform_(linear.bias, -bound, bound, generator)
