"""Modules that custom loops record exactly by running them again for each datum."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from custom_loops import D, Small, V, loss_of
from exact_attention import Attending, Encoder
from exact_families import deberta, masked_loss
from exact_loops import ADAMW, EXACT, kind, train
from exact_models import Experts, supervised
from loop_session import Session
from torch import Tensor, nn
from torch.nn import functional as F


class Recurrent(nn.Module):
    """A recurrent network between embedding and unembedding."""

    def __init__(self, make: Callable[..., nn.RNNBase], **more: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, D)
        self.rnn = make(D, D, **more)
        self.out = nn.Linear(D * (1 + self.rnn.bidirectional), V)

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        if self.rnn.batch_first:
            return self.out(self.rnn(x_NTD)[0])
        return self.out(self.rnn(x_NTD.transpose(0, 1))[0].transpose(0, 1))


class LastState(Recurrent):
    """Predicts the last token by the last state."""

    def forward(self, token_NT: Tensor) -> Tensor:
        _, state_LND = self.rnn(self.embedding(token_NT))
        return self.out(state_LND[-1])


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.pair = nn.Embedding(V, D), nn.Bilinear(D, D, V)

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        return self.pair(x_NTD, x_NTD.cumsum(1))


def loss_of_last(model: nn.Module, token_NT: Tensor) -> Tensor:
    return F.cross_entropy(model(token_NT[:, :-1]), token_NT[:, -1])


def convolutions(session: Session, axes: int, *layers: nn.Module) -> None:
    torch.manual_seed(0)
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
    model = nn.Sequential(*layers, nn.Flatten())
    inputs = torch.randn(6, 4, *(5 for _ in range(axes)))
    supervised(session, model, inputs, F.mse_loss, torch.randn(model(inputs).shape))


def of_tokens(
    make: Callable[[], nn.Module],
    session: Session,
    *,
    loss: Callable[..., Tensor] = loss_of,
    **more: Any,
) -> None:
    model = make()
    train(session, model, ADAMW(model.parameters(), 0.01), loss=loss, **more)


def weight_norm() -> nn.Module:
    model = Small()
    nn.utils.parametrizations.weight_norm(model.layer)
    return model


VMAP: dict[str, Any] = {"fallback": "vmap"}
EXACT |= {
    "an LSTM, a GRU": partial(of_tokens, partial(Recurrent, nn.LSTM, batch_first=True)),
    "a GRU of two layers in both directions, with positions first": partial(
        of_tokens, partial(Recurrent, nn.GRU, num_layers=2, bidirectional=True)
    ),
    "the last state of an RNN": partial(
        of_tokens, partial(LastState, nn.RNN, batch_first=True), loss=loss_of_last
    ),
    "nn.Bilinear": partial(of_tokens, Bilinear),
    "nn.MultiheadAttention with bias_k and bias_v": partial(
        of_tokens, partial(Attending, add_bias_kv=True)
    ),
    "Conv1d, also with groups, and ConvTranspose1d": lambda session: convolutions(
        session,
        1,
        *(nn.Conv1d(4, 6, 3), nn.Tanh(), nn.Conv1d(6, 6, 2, groups=2)),
        nn.ConvTranspose1d(6, 2, 3, stride=2),
    ),
    "GroupNorm, InstanceNorm, PReLU, ConvTranspose2d": lambda session: convolutions(
        session,
        2,
        *(nn.Conv2d(4, 6, 2), nn.GroupNorm(2, 6), nn.PReLU(6)),
        *(nn.ConvTranspose2d(6, 4, 2), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 2, 1)),
    ),
    "Conv3d and ConvTranspose3d": lambda session: convolutions(
        session, 3, nn.Conv3d(4, 3, 2), nn.Tanh(), nn.ConvTranspose3d(3, 2, 2)
    ),
    'fallback="vmap": routed experts': partial(of_tokens, Experts, **VMAP),
    'fallback="vmap": positions before the batch inside the model': partial(
        of_tokens, partial(Encoder, batch_first=False), **VMAP
    ),
    'fallback="vmap": a weight that is computed from others (weight_norm)': partial(
        of_tokens, weight_norm, **VMAP
    ),
    'fallback="vmap": DeBERTa-v2 with relative positions': partial(
        of_tokens, partial(deberta, relative=True), loss=masked_loss, **VMAP
    ),
}


class Product(torch.autograd.Function):
    """A linear function whose gradient no torch function shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grads[0] @ weight, grads[0].flatten(0, -2).T @ x.flatten(0, -2)


class Custom(Small):
    """Unembeds by a custom ``autograd.Function``."""

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = torch.tanh(self.layer(self.embedding(token_NT)))
        return Product.apply(self.norm(x_NTD), self.out.weight)  # pyright: ignore


@kind('fallback="vmap": a unit used by a custom autograd.Function')
def custom_function(session: Session) -> None:
    of_tokens(Custom, session, **VMAP)
