"""Attention of ``torch.nn`` in custom loops that are recorded exactly."""

from typing import Any

import torch
from custom_loops import V
from exact_loops import ADAMW, kind, train
from loop_session import Session
from torch import Tensor, nn

E = 8


class Encoder(nn.Module):
    """An encoder layer of ``torch.nn``, with the batch or the positions first inside."""

    def __init__(self, *, batch_first: bool, causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(V, E), nn.Linear(E, V)
        self.layer = nn.TransformerEncoderLayer(E, 2, 12, dropout=0.0, batch_first=batch_first)
        self.batch_first, self.causal = batch_first, causal

    def forward(self, token_NT: Tensor) -> Tensor:
        x = self.embedding(token_NT)
        if not self.batch_first:
            return self.out(self.layer(x.transpose(0, 1)).transpose(0, 1))
        if not self.causal:
            return self.out(self.layer(x))
        mask_TT = nn.Transformer.generate_square_subsequent_mask(token_NT.shape[1])
        return self.out(self.layer(x, src_mask=mask_TT, is_causal=True))


class Attending(nn.Module):
    """Attention of queries, keys and values of their own, with weights returned."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(V, E), nn.Linear(E, V)
        self.keys = nn.Embedding(V, options.get("kdim", E))
        self.attention = nn.MultiheadAttention(E, 2, batch_first=True, **options)

    def forward(self, token_NT: Tensor) -> Tensor:
        key_NTE = self.keys(token_NT)
        query_NTE, value_NTE = self.embedding(token_NT), key_NTE * 2
        return self.out(self.attention(query_NTE, key_NTE, value_NTE)[0])


class Translator(nn.Module):
    """An encoder and a decoder of ``torch.nn``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(V, E), nn.Linear(E, V)
        self.body = nn.Transformer(E, 2, 1, 1, 12, dropout=0.0, batch_first=True)

    def forward(self, token_NT: Tensor) -> Tensor:
        return self.out(self.body(self.embedding(token_NT), self.embedding(token_NT.flip(1))))


@kind("nn.TransformerEncoderLayer(batch_first=True)")
def encoder_layer(session: Session) -> None:
    model = Encoder(batch_first=True)
    train(session, model, ADAMW(model.parameters(), 0.01))


@kind("nn.TransformerEncoderLayer(batch_first=True) with a causal mask")
def causal_layer(session: Session) -> None:
    model = Encoder(batch_first=True, causal=True)
    train(session, model, ADAMW(model.parameters(), 0.01))


@kind("nn.Transformer (attention to an encoder, with weights that are split)")
def translator(session: Session) -> None:
    model = Translator()
    train(session, model, ADAMW(model.parameters(), 0.01))


@kind("nn.MultiheadAttention of three different inputs")
def three_inputs(session: Session) -> None:
    model = Attending(add_zero_attn=True)
    train(session, model, ADAMW(model.parameters(), 0.01))


@kind("nn.MultiheadAttention with keys and values of another width")
def other_width(session: Session) -> None:
    model = Attending(kdim=6, vdim=6)
    train(session, model, ADAMW(model.parameters(), 0.01))


@kind("nn.MultiheadAttention in a layer with positions first")
def positions_first(session: Session) -> None:
    model = Encoder(batch_first=False)
    units = ["layer.self_attn.*", "embedding.*"]
    train(session, model, ADAMW(model.parameters(), 0.01), units=units)
