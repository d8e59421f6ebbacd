"""A model of packed rows whose attention is blocked between documents, and data for it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from custom_loops import D, V
from torch import Tensor, nn
from torch.nn import functional as F

DOCUMENTS = [[1, 2, 3, 4], [5, 6, 8], [7, 8, 9, 10, 1, 3], [2, 4, 6], [3, 1, 4, 1, 5], [9, 2, 6]]
"""Tokens of each document, the last target included."""
LENGTHS = [len(own) - 1 for own in DOCUMENTS]


class Packed(nn.Module):
    """Embeddings of tokens and positions, one attention within documents, and an unembedding."""

    def __init__(self, *, blocked: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocked = blocked
        self.embedding, self.positions = nn.Embedding(V, D), nn.Embedding(16, D)
        self.qkv, self.mix = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.scale, self.out = nn.LayerNorm(D // 2), nn.Linear(D, V)
        self.drop = nn.Dropout(0.0)

    def forward(self, tokens: Tensor, position_ids: Tensor) -> Tensor:
        x_RWD = self.embedding(tokens) + self.positions(position_ids)
        document_RW = (position_ids.diff(dim=1, prepend=position_ids[:, :1] - 1) != 1).cumsum(1)
        allowed_RWW = document_RW[:, :, None] == document_RW[:, None, :]
        if not self.blocked:
            allowed_RWW = torch.ones_like(allowed_RWW)
        q, k, v = (self.heads(x) for x in self.qkv(self.drop(x_RWD)).chunk(3, dim=-1))
        mask = allowed_RWW.tril()[:, None]
        y = F.scaled_dot_product_attention(self.scale(q), k, v, attn_mask=mask)
        return self.out(x_RWD + self.mix(y.transpose(1, 2).flatten(2)))

    def heads(self, x_RWD: Tensor) -> Tensor:
        return x_RWD.unflatten(2, (2, D // 2)).transpose(1, 2)


class Flat(nn.Module):
    """Takes the tokens of all documents in one axis, and where each begins."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layer, self.out = nn.Embedding(V, D), nn.Linear(D, D), nn.Linear(D, V)

    def forward(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        x_MD = self.embedding(tokens)
        ends = cu_seqlens.tolist()
        # The mean over the tokens before, within each document.
        parts = [x_MD[a:b] for a, b in pairwise(ends)]
        before = [part.cumsum(0) / torch.arange(1, len(part) + 1)[:, None] for part in parts]
        return self.out(torch.tanh(self.layer(torch.cat(before))))


def packed(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, positions and labels [R, W] of rows of documents, padded with 0, 0, -100."""
    width = max(sum(LENGTHS[i] for i in own) for own in rows)
    tokens, places = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(2))
    labels = torch.full_like(tokens, -100)
    for row, own in enumerate(rows):
        at = 0
        for i in own:
            here = slice(at, at + LENGTHS[i])
            tokens[row, here] = torch.tensor(DOCUMENTS[i][:-1])
            labels[row, here] = torch.tensor(DOCUMENTS[i][1:])
            places[row, here] = torch.arange(LENGTHS[i])
            at += LENGTHS[i]
    return tokens, places, labels


def summed_loss(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the sum over labels, divided by a number of tokens."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum") / count
