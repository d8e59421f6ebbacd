"""Small models of several families, as trajectories see them, with weights that all matter."""

import torch
from tiny_hf import SETTINGS

from capture.models.huggingface import HFConfig, build_hf_model
from capture.models.transformer import AnyModel, ModelConfig, fresh_model

V, T = 30, 8
SHAPES = {**SETTINGS, "opt": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}}
SHAPES["opt"] |= {"ffn_dim": 16, "max_position_embeddings": 16, "word_embed_proj_dim": 8}
KINDS = ["transformer", *SHAPES]


def network(kind: str) -> AnyModel:
    """A model with larger weights than at the start, so that all its parts matter."""
    if kind == "transformer":
        config = ModelConfig(layers=2, width=8, hidden=12, heads=2)
        made: AnyModel = fresh_model(config, vocabulary=V, window=T, seed=0)
    else:
        config = HFConfig(family=kind, settings=SHAPES[kind])
        made = build_hf_model(config, vocabulary=V, window=T, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made.eval().requires_grad_(False)
