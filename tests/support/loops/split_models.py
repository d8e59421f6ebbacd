"""Models of which captured gradients are hard to split by datum, and losses in which datums mix."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

V, D, N, T = 11, 8, 4, 8
Loss = Callable[[nn.Module, Tensor], Tensor]


def tokens() -> Tensor:
    return torch.randint(V, (N, T + 1), generator=torch.Generator().manual_seed(0))


class Parts(nn.Module):
    """An embedding, a layer and an unembedding; kinds of models differ in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, D)
        self.positions = nn.Embedding(16, D)
        self.layer = nn.Linear(D, D)
        self.out = nn.Linear(D, V)

    def body(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


class TimeFirst(Parts):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0)

    def forward(self, token_NT: Tensor) -> Tensor:
        x_TND = self.body(self.embedding(token_NT).transpose(0, 1))
        return self.out(self.block(x_TND).transpose(0, 1))


class ChosenTokens(Parts):
    def forward(self, token_NT: Tensor) -> Tensor:
        # 5, 1, 3 and 3 tokens: as many rows as four datums of three tokens would have
        mask_NT = torch.arange(T) < torch.tensor([5, 1, 3, 3])[: len(token_NT), None]
        chosen = self.body(self.embedding(token_NT))[mask_NT]
        rows = torch.zeros(len(token_NT), T, V)
        return rows.masked_scatter(mask_NT[..., None].expand_as(rows), self.out(chosen))


class Repeated(Parts):
    def forward(self, token_NT: Tensor) -> Tensor:
        places = self.positions(torch.arange(token_NT.shape[1])[None]).repeat(len(token_NT), 1, 1)
        return self.out(self.body(self.embedding(token_NT) + places))


class FirstRow(Parts):
    def forward(self, token_NT: Tensor) -> Tensor:
        places = self.positions(torch.arange(token_NT.shape[1])[None])[0]
        return self.out(self.body(self.embedding(token_NT) + places))


class LayerOnPositions(Parts):
    def forward(self, token_NT: Tensor) -> Tensor:
        places = self.body(self.positions(torch.arange(token_NT.shape[1])))
        return self.out(self.embedding(token_NT) + places + 0.5 * places)


class PairsOfPositions(Parts):
    """A relative bias [T, T], the same for all datums, as in T5."""

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.body(self.embedding(token_NT))
        at = torch.arange(x_NTD.shape[1])
        bias_NDTT = self.positions((at[:, None] - at[None]).abs()).permute(2, 0, 1)[None]
        scores = torch.einsum("ntd,nsd->nts", x_NTD, x_NTD)[:, None] + bias_NDTT
        return self.out(torch.einsum("ndts,nsd->ntd", scores.softmax(-1), x_NTD))


class Dropped(Parts):
    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = F.dropout(self.body(self.embedding(token_NT)), 0.3, self.training)
        return self.out(x_NTD)


class Normalized(Parts):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D, affine=False)

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.body(self.embedding(token_NT))
        return self.out(self.norm(x_NTD.transpose(1, 2)).transpose(1, 2))


class Balanced(Parts):
    """A router whose gates are divided by their sum over the batch."""

    def forward(self, token_NT: Tensor) -> Tensor:
        gate_NTD = self.layer(self.embedding(token_NT)).exp()
        return self.out(gate_NTD / gate_NTD.sum(0, keepdim=True))


class MaskFirst(Parts):
    """A model whose first argument is a mask of positions, not the batch."""

    def forward(self, mask_TT: Tensor, token_NT: Tensor) -> Tensor:
        return self.out(mask_TT @ self.body(self.embedding(token_NT)))


class Fixed(Normalized):
    """BatchNorm that uses its running statistics: datums do not interact."""

    def train(self, mode: bool = True) -> "Fixed":
        super().train(mode)
        self.norm.eval()
        return self


def next_token(model: nn.Module, token_NT: Tensor) -> Tensor:
    return F.cross_entropy(model(token_NT[:, :-1]).flatten(0, 1), token_NT[:, 1:].flatten())


def contrastive(model: nn.Module, token_NT: Tensor) -> Tensor:
    x_NV = F.normalize(model(token_NT[:, :-1]).mean(1), dim=1)
    y_NV = F.normalize(model(token_NT[:, 1:]).mean(1), dim=1)
    return F.cross_entropy(x_NV @ y_NV.T, torch.arange(len(token_NT)))


def batch_normalized(model: nn.Module, token_NT: Tensor) -> Tensor:
    loss_NT = model(token_NT[:, :-1]).logsumexp(2)
    return ((loss_NT - loss_NT.mean(0)) / loss_NT.std(0)).exp().sum()
