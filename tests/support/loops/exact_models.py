"""Models that custom loops record exactly, by the name that the docs give them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from custom_loops import D, Small, V, loss_of
from exact_loops import ADAMW, TOKENS, kind, train
from loop_session import Session
from torch import Tensor, nn
from torch.nn import functional as F


def supervised(
    session: Session,
    model: nn.Module,
    inputs: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    target: Tensor,
    **more: Any,
) -> None:
    """Take two steps on inputs [N, …] and targets [N, …], with the mean loss over datums."""
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=len(inputs), **more) as recorder:
        for ids in ([0, 1, 2], [5, 3, 4]):
            recorder.datums(ids)
            loss(model(inputs[ids]), target[ids]).backward()
            session.expect({i: lambda i=i: loss(model(inputs[[i]]), target[[i]]) / 3 for i in ids})
            optimizer.step()
            optimizer.zero_grad()


@kind("regression of features, one row a datum")
def regression(session: Session) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.LayerNorm(7), nn.Linear(7, 2))
    supervised(session, model, torch.randn(6, 5), F.mse_loss, torch.randn(6, 2))


@kind("a convolutional network on images")
def convolution(session: Session) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 4)
    )
    target_N = torch.tensor([0, 1, 2, 3, 0, 1])
    supervised(session, model, torch.randn(6, 2, 8, 8), F.cross_entropy, target_N)


@kind("tied input and output embeddings")
def tied(session: Session) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.layer = nn.Embedding(V, D), nn.Linear(D, D)

        def forward(self, token_NT: Tensor) -> Tensor:
            return F.linear(torch.tanh(self.layer(self.embedding(token_NT))), self.embedding.weight)

    model = Tied()
    train(session, model, ADAMW(model.parameters(), 0.01))


@kind("an LSTM left out of the units by !pattern")
def recurrent(session: Session) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.out = nn.Embedding(V, D), nn.Linear(D, V)
            self.rnn = nn.LSTM(D, D, batch_first=True)

        def forward(self, token_NT: Tensor) -> Tensor:
            return self.out(self.rnn(self.embedding(token_NT))[0])

    model = Recurrent()
    train(session, model, ADAMW(model.parameters(), 0.01), units=["!rnn.*"])


class Experts(Small):
    """A mixture of two experts, each of which gets the tokens that a router sends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(D, D) for _ in range(2))
        self.router = nn.Linear(D, 2)

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        share_NT, chosen_NT = self.router(x_NTD).softmax(-1).max(-1)
        y_NTD = torch.zeros_like(x_NTD)
        for number, expert in enumerate(self.experts):
            here = chosen_NT == number
            y_NTD[here] = expert(x_NTD[here]) * share_NT[here][:, None]
        return self.out(x_NTD + y_NTD)


@kind("routed experts, left out of the units by !pattern")
def routed(session: Session) -> None:
    model = Experts()
    train(session, model, ADAMW(model.parameters(), 0.01), units=["!experts.*"])


@kind("layers dropped at random (LayerDrop)")
def random_layers(session: Session) -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.out = nn.Embedding(V, D), nn.Linear(D, V)
            self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(4))
            self.kept: list[bool] | None = None

        def forward(self, token_NT: Tensor) -> Tensor:
            x_NTD = self.embedding(token_NT)
            drawn = [bool(torch.rand(()) < 0.5) for _ in self.layers]
            for layer, kept in zip(self.layers, self.kept or drawn, strict=True):
                x_NTD = x_NTD + torch.tanh(layer(x_NTD)) if kept else x_NTD
            self.drawn = drawn
            return self.out(x_NTD)

    model = Dropped()
    optimizer = ADAMW(model.parameters(), 0.01)

    def share(i: int, kept: list[bool]) -> Tensor:
        model.kept = kept
        return loss_of(model, TOKENS[[i]]) / 2

    with session.record(model, optimizer, datums=12) as recorder:
        for ids in ([0, 1], [2, 3], [4, 5], [6, 7]):
            recorder.datums(ids)
            loss_of(model, TOKENS[ids]).backward()
            session.expect({i: partial(share, i, model.drawn) for i in ids})
            optimizer.step()
            optimizer.zero_grad()


def fast(part: Any) -> Any:
    return torch.compile(part, backend="eager")


def compiled_loop(session: Session, model: nn.Module, loss: Callable[..., Tensor]) -> None:
    """Record a model of which a part is compiled, also before the recording begins."""
    optimizer = ADAMW(model.parameters(), 0.01)
    loss(TOKENS).backward()
    optimizer.zero_grad()
    with session.record(model, optimizer, datums=12, units=["layer.*", "*.bias"]) as recorder:
        for ids in ([0, 1], [2, 3]):
            recorder.datums(ids)
            loss(TOKENS[ids]).backward()
            session.expect({i: lambda i=i: loss(TOKENS[[i]]) / 2 for i in ids})
            optimizer.step()
            optimizer.zero_grad()


@kind("torch.compile, the compiled model recorded")
def compiled(session: Session) -> None:
    model = fast(Small())
    compiled_loop(session, model, partial(loss_of, model))


@kind("torch.compile, the model inside recorded")
def compiled_inside(session: Session) -> None:
    model = Small()
    compiled_loop(session, model, partial(loss_of, fast(model)))


@kind("model.compile()")
def compiled_in_place(session: Session) -> None:
    model = Small()
    model.compile(backend="eager")
    compiled_loop(session, model, partial(loss_of, model))


@kind("torch.compile of the function that computes the loss")
def compiled_loss(session: Session) -> None:
    model = Small()
    compiled_loop(session, model, fast(partial(loss_of, model)))


@kind("torch.compile of one layer")
def compiled_layer(session: Session) -> None:
    model = Small()
    model.layer.compile(backend="eager")
    compiled_loop(session, model, partial(loss_of, model))
