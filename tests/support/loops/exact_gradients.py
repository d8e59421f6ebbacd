"""What a custom loop may do to gradients, and is recorded exactly."""

from functools import partial

import torch
from custom_loops import D, Small, V, loss_of
from exact_loops import ADAMW, EXACT, SGD, TOKENS, kind, shares_of, train
from loop_session import Session, Share
from torch import Tensor, nn


@kind("clipping of the total norm")
def clipping(session: Session) -> None:
    model = Small()
    clip = partial(nn.utils.clip_grad_norm_, list(model.parameters()), 0.1)
    train(session, model, ADAMW(model.parameters(), 0.01), before_step=clip)


@kind("clipping by value")
def clipping_values(session: Session) -> None:
    model = Small()
    clip = partial(nn.utils.clip_grad_value_, list(model.parameters()), 1e-3)
    train(session, model, ADAMW(model.parameters(), 0.01), before_step=clip)


@kind("clipping group by group, or of one layer")
def clipping_groups(session: Session) -> None:
    model = Small()

    def clip() -> None:
        for part in (model.embedding, model.layer):
            nn.utils.clip_grad_norm_(part.parameters(), 0.01)

    train(session, model, ADAMW(model.parameters(), 0.01), before_step=clip)


@kind("zero_grad(set_to_none=False)")
def zeros_kept(session: Session) -> None:
    model = Small()
    train(session, model, SGD(model.parameters(), 0.1, momentum=0.9), set_to_none=False)


@kind("micro-batches of unequal size and length")
def micro_batches(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=12) as recorder:
        for pieces in ([[0, 1, 2], [3]], [[4], [5, 6]]):
            shares: dict[int, Share] = {}
            for number, ids in enumerate(pieces):
                recorder.datums(ids)
                (loss_of(model, TOKENS[ids, number:]) / 2).backward()
                for i in ids:
                    shares[i] = lambda i=i, number=number, ids=ids: (
                        loss_of(model, TOKENS[[i], number:]) / len(ids) / 2
                    )
            session.expect(shares)
            optimizer.step()
            optimizer.zero_grad()


@kind("gradients discarded before a step (zero_grad without step)")
def discarded(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=12) as recorder:
        for ids in ([0, 1], [2, 3]):
            recorder.datums([8, 9, 10])
            loss_of(model, TOKENS[8:11]).backward()
            optimizer.zero_grad()
            recorder.datums(ids)
            loss_of(model, TOKENS[ids]).backward()
            session.expect(shares_of(model, ids))
            optimizer.step()
            optimizer.zero_grad()


def scaled(session: Session, *, fused: bool, unscale: bool, overflow: bool) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    with session.record(model, optimizer, datums=12) as recorder:
        for step, ids in enumerate([[0, 1, 2], [3, 4], [5, 6]]):
            recorder.datums(ids)
            skipped = overflow and step == 1
            loss = loss_of(model, TOKENS[ids]) * (torch.inf if skipped else 1.0)
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if not skipped:
                session.expect(shares_of(model, ids))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


EXACT["GradScaler"] = partial(scaled, fused=False, unscale=False, overflow=False)
EXACT["GradScaler with unscale_ and clipping"] = partial(
    scaled, fused=False, unscale=True, overflow=False
)
EXACT["GradScaler that skips a step"] = partial(scaled, fused=False, unscale=False, overflow=True)
EXACT["GradScaler with a fused optimizer"] = partial(
    scaled, fused=True, unscale=False, overflow=False
)
EXACT["GradScaler with a fused optimizer, unscale_ and clipping"] = partial(
    scaled, fused=True, unscale=True, overflow=False
)
EXACT["GradScaler with a fused optimizer that skips a step"] = partial(
    scaled, fused=True, unscale=False, overflow=True
)


class SparseModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, D, sparse=True)
        self.out = nn.Linear(D, V)

    def forward(self, token_NT: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embedding(token_NT)))


def sparse(session: Session, momentum: float) -> None:
    model = SparseModel()
    train(session, model, SGD(model.parameters(), 0.1, momentum=momentum), steps=3)


EXACT["a sparse embedding"] = partial(sparse, momentum=0.0)
EXACT["a sparse embedding with momentum"] = partial(sparse, momentum=0.9)


class Layers(nn.Module):
    """Three layers, each of which may be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(V, D), nn.Linear(D, V)
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(3))
        self.left_out: int | None = None

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        for number, layer in enumerate(self.layers):
            if number != self.left_out:
                x_NTD = x_NTD + torch.tanh(layer(x_NTD))
        return self.out(x_NTD)


def layer_drop(
    session: Session, optimizer: torch.optim.Optimizer, model: Layers, *, set_to_none: bool
) -> None:
    with session.record(model, optimizer, datums=12) as recorder:
        for step, ids in enumerate([[0, 1], [2, 3], [4, 5], [6, 7]]):
            model.left_out = (None, 0, 2, 0)[step]
            recorder.datums(ids)
            loss_of(model, TOKENS[ids]).backward()

            def share(i: int, left_out: int | None = model.left_out) -> Tensor:
                model.left_out = left_out
                return loss_of(model, TOKENS[[i]]) / 2

            session.expect({i: partial(share, i) for i in ids})
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)


@kind("a layer or expert that a step leaves out (gradient None)")
def left_out(session: Session) -> None:
    model = Layers()
    layer_drop(session, ADAMW(model.parameters(), 0.01), model, set_to_none=True)


@kind("a layer or expert that a step leaves out (gradient 0, momentum moves it)")
def left_out_with_momentum(session: Session) -> None:
    model = Layers()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    layer_drop(session, optimizer, model, set_to_none=False)


@kind("a layer that one micro-batch of a step leaves out")
def left_out_of_a_micro_batch(session: Session) -> None:
    model = Layers()
    optimizer = ADAMW(model.parameters(), 0.01)

    def loss(i: int, left_out: int | None) -> Tensor:
        model.left_out = left_out
        return loss_of(model, TOKENS[[i]]) / 2

    with session.record(model, optimizer, datums=12) as recorder:
        for first in (1, None):
            for i, left in ((0, first), (1, 2)):
                recorder.datums([i])
                loss(i, left).backward()
            session.expect({0: partial(loss, 0, first), 1: partial(loss, 1, 2)})
            optimizer.step()
            optimizer.zero_grad()
