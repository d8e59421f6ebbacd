"""Tiny models of many families, as ablation and activations know them."""

from typing import Any

import pytest
import torch
from family_settings import GROUPED, family_settings
from torch import Tensor, nn
from torch.nn import functional as F

from capture.models.huggingface import HFConfig, build_hf_model

VOCABULARY, WINDOW, WIDTH = 23, 6, 16
HUGGING_FACE: dict[str, dict[str, Any]] = family_settings(head_dim=8) | {
    "olmo": GROUPED,
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
    "cohere": GROUPED,
    "granite": GROUPED | {"logits_scaling": 3.0},
    "mixtral": GROUPED | {"num_local_experts": 2},
}
"""Family → settings of a model of two layers, four heads and width 16."""


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` with a causal mask between an embedding and an unembedding."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 24, 0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, VOCABULARY)
        self.batch_first = batch_first

    def forward(self, token_NT: Tensor) -> Tensor:
        mask_TT = nn.Transformer.generate_square_subsequent_mask(token_NT.shape[1])
        x = self.embedding(token_NT if self.batch_first else token_NT.T)
        x = self.out(self.encoder(x, mask=mask_TT))
        return x if self.batch_first else x.transpose(0, 1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_head = 4
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x_NTD: Tensor) -> Tensor:
        parts = self.qkv(x_NTD).unflatten(2, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        mixed_NHTE = F.scaled_dot_product_attention(*parts, is_causal=True)
        return self.out(mixed_NHTE.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, *, position_first: bool) -> None:
        super().__init__()
        self.mixer, self.norm = Attention(), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.position_first = position_first

    def forward(self, x: Tensor) -> Tensor:
        given = x.transpose(0, 1) if self.position_first else x
        mixed = self.mixer(self.norm(given))
        x = x + (mixed.transpose(0, 1) if self.position_first else mixed)
        return x + self.down(F.gelu(self.up(x)))


class ByHand(nn.Module):
    """A model as people write them: tied unembedding without a module, a stack of blocks."""

    def __init__(self, *, position_first: bool = False, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.position_first = position_first
        self.blocks = nn.Sequential(*(Block(position_first=position_first) for _ in range(layers)))

    def forward(self, token_NT: Tensor) -> Tensor:
        x = self.tokens(token_NT.T if self.position_first else token_NT)
        x = self.blocks(x) @ self.tokens.weight.T
        return x.transpose(0, 1) if self.position_first else x


class NoLayers(nn.Module):
    """One MLP, without a stack of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.linear1, self.linear2 = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, token_NT: Tensor) -> tuple[Tensor, None]:
        x_NTD = self.embedding(token_NT)
        return self.out(x_NTD + self.linear2(torch.relu(self.linear1(x_NTD)))), None


OWN = {
    "nn.TransformerEncoder": lambda: Encoder(batch_first=True),
    "nn.TransformerEncoder, position first": lambda: Encoder(batch_first=False),
    "by hand": ByHand,
    "position first, by hand": lambda: ByHand(position_first=True),
    "no layers, by hand": NoLayers,
}


def families() -> list[str]:
    return [*HUGGING_FACE, *OWN]


def tiny_model(name: str) -> nn.Module:
    """Return a model of a family with random weights; skips without transformers."""
    if name in OWN:
        torch.manual_seed(0)
        return OWN[name]()
    pytest.importorskip("transformers", reason="needs the extra ontogeny[hf]")
    config = HFConfig(family=name, settings=HUGGING_FACE[name])
    return build_hf_model(config, vocabulary=VOCABULARY, window=WINDOW, seed=0)
