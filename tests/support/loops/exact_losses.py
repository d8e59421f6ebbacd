"""Losses, and ways of calling a model, that custom loops record exactly."""

from typing import Any

import torch
from custom_loops import D, Small, loss_of
from exact_loops import ADAMW, kind, train
from loop_session import Session
from torch import Tensor, nn
from torch.nn import functional as F

Context = Any


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return ADAMW(model.parameters(), 0.01)


@kind("layer outputs changed in place (nn.ReLU(inplace=True), positions added by +=)")
def changed_in_place(session: Session) -> None:
    class InPlace(Small):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.relu = nn.Embedding(8, D), nn.ReLU(inplace=True)

        def forward(self, token_NT: Tensor) -> Tensor:
            x_NTD = self.embedding(token_NT)
            x_NTD += self.positions(torch.arange(token_NT.shape[1]))
            return self.out(self.norm(x_NTD + self.relu(self.layer(x_NTD))))

    model = InPlace()
    train(session, model, adamw(model))


@kind("logits changed in place by the loss")
def logits_in_place(session: Session) -> None:
    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        logit_NTV = model(token_NT[:, :-1])
        logit_NTV[:, 0] = 0
        logit_NTV.mul_(2)
        return F.cross_entropy(logit_NTV.flatten(0, 1), token_NT[:, 1:].flatten())

    model = Small()
    train(session, model, adamw(model), loss=loss)


@kind("a loss in a tensor that is filled datum by datum")
def filled(session: Session) -> None:
    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        logit_NTV, loss_N = model(token_NT[:, :-1]), torch.zeros(len(token_NT))
        for row, logit_TV in enumerate(logit_NTV):
            loss_N[row] = F.cross_entropy(logit_TV, token_NT[row, 1:])
        return loss_N.mean()

    model = Small()
    train(session, model, adamw(model), loss=loss)


@kind("sums of losses that the loop keeps by itself")
def kept_sums(session: Session) -> None:
    total, steps = torch.zeros(()), []

    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        found = loss_of(model, token_NT)
        nonlocal total
        total += found.detach()
        steps.append(float(found.detach()))
        return found

    model = Small()
    train(session, model, adamw(model), loss=loss)
    assert abs(float(total) - sum(steps)) < 1e-5  # no check has added to it


@kind("a loss module that is a part of the model")
def own_criterion(session: Session) -> None:
    class WithLoss(Small):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = nn.CrossEntropyLoss()

    def loss(model: Any, token_NT: Tensor) -> Tensor:
        return model.criterion(model(token_NT[:, :-1]).flatten(0, 1), token_NT[:, 1:].flatten())

    model = WithLoss()
    train(session, model, adamw(model), loss=loss)


@kind("parts of the model called one by one")
def parts(session: Session) -> None:
    def loss(model: Any, token_NT: Tensor) -> Tensor:
        x_NTD = model.embedding(token_NT[:, :-1])
        x_NTD = model.norm(x_NTD + torch.tanh(model.layer(x_NTD)))
        return F.cross_entropy(model.out(x_NTD).flatten(0, 1), token_NT[:, 1:].flatten())

    model = Small()
    train(session, model, adamw(model), loss=loss)


@kind("weights used by the loop itself (F.linear with those of the embedding)")
def used_by_the_loop(session: Session) -> None:
    def loss(model: Any, token_NT: Tensor) -> Tensor:
        x_NTD = model.norm(model.embedding(token_NT[:, :-1]))
        logit_NTV = F.linear(x_NTD, model.embedding.weight)
        return F.cross_entropy(logit_NTV.flatten(0, 1), token_NT[:, 1:].flatten())

    model = Small()
    train(session, model, adamw(model), loss=loss, units=["embedding.*", "norm.*"])


class SquaredMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().mean()

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * 2 * x / x.numel()


@kind("a loss in a custom autograd.Function")
def custom_function(session: Session) -> None:
    model = Small()
    train(session, model, adamw(model), loss=lambda m, x: SquaredMean.apply(m(x)))


@kind("a gradient given to backward, logits.backward(gradient)")
def given_gradient(session: Session) -> None:
    """A loss with the same gradient serves as each datum's part."""
    model = Small()

    class Given(torch.autograd.Function):
        """Sends a gradient of its own choice back."""

        @staticmethod
        def forward(ctx: Context, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sum()

        @staticmethod
        def backward(ctx: Context, *grads: Tensor) -> Tensor:
            return torch.tanh(ctx.saved_tensors[0]) * grads[0]

    optimizer = adamw(model)
    with session.record(model, optimizer) as recorder:
        token_NT = torch.tensor([[1, 2, 3], [4, 5, 6]])
        recorder.datums([0, 1])
        logit_NTV = model(token_NT)
        logit_NTV.backward(torch.tanh(logit_NTV.detach()))
        session.expect({i: lambda i=i: Given.apply(model(token_NT[[i]])) for i in (0, 1)})
        optimizer.step()
