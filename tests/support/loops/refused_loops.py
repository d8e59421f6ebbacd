"""Kinds of custom training loops that are refused, by the name that the docs give them."""

from collections.abc import Callable
from functools import partial

import torch
from custom_loops import Small, V, loss_of, tokens
from exact_loops import SGD
from loop_session import Session
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from capture.errors import (
    AuditError,
    CaptureError,
    ConfigError,
    RunError,
    UnitError,
)

Loop = Callable[[Session], None]
REFUSED: dict[str, tuple[Loop, type[CaptureError], str]] = {}
"""Name → loop, error, and a part of its message."""
TOKENS = tokens()


def kind(name: str, error: type[CaptureError], message: str) -> Callable[[Loop], Loop]:
    def add(loop: Loop) -> Loop:
        REFUSED[name] = loop, error, message
        return loop

    return add


def train(
    session: Session,
    model: nn.Module,
    *,
    loss: Callable[..., Tensor] = loss_of,
    before_step: Callable[[], object] = lambda: None,
    after_step: Callable[[], object] = lambda: None,
    optimizer: torch.optim.Optimizer | None = None,
    **more: object,
) -> None:
    optimizer = optimizer or SGD(model.parameters(), 0.1)
    with session.record(model, optimizer, **more) as recorder:
        for ids in ([0, 1, 2, 3], [4, 5, 6, 7]):
            recorder.datums(ids)
            loss(model, TOKENS[ids]).backward()
            before_step()
            optimizer.step()
            optimizer.zero_grad()
            after_step()


# --- the loop itself ------------------------------------------------------------------------------


@kind(
    "zero_grad is forgotten",
    RunError,
    "step 1: gradients were not set to zero since step 0, so that this step has them again",
)
def no_zero_grad(session: Session) -> None:
    model = Small()
    optimizer = SGD(model.parameters(), 0.1)
    with session.record(model, optimizer):
        for _ in range(2):
            loss_of(model, TOKENS).backward()
            optimizer.step()


@kind(
    "gradients of before the recording",
    RunError,
    "step 0: gradients were not set to zero since before the recording",
)
def old_gradients(session: Session) -> None:
    model = Small()
    loss_of(model, TOKENS).backward()
    train(session, model)


@kind("a step without backward pass", RunError, "step 1: no backward pass has reached a unit since")
def no_backward(session: Session) -> None:
    model = Small()
    optimizer = SGD(model.parameters(), 0.1)
    train(session, model, optimizer=optimizer, after_step=optimizer.step)


@kind(
    "weights changed outside the optimizer",
    UnitError,
    "embedding.weight: was changed after step 0, not by the optimizer",
)
def shrunk(session: Session) -> None:
    model = Small()

    @torch.no_grad()
    def shrink() -> None:
        for parameter in model.parameters():
            parameter.mul_(0.9)

    train(session, model, after_step=shrink)


@kind(
    "weights loaded between two steps",
    UnitError,
    "layer.bias: was changed after step 0, not by the optimizer",
)
def loaded(session: Session) -> None:
    model, other = Small(), Small(seed=1)
    weights = {"layer.bias": other.state_dict()["layer.bias"]}
    train(session, model, after_step=lambda: model.load_state_dict(weights, strict=False))


@kind(
    "weights loaded after the last step, while the block is open",
    UnitError,
    "embedding.weight: was changed after step 1, not by the optimizer",
)
def loaded_at_the_end(session: Session) -> None:
    model, best = Small(), Small(seed=1).state_dict()
    actions = iter([lambda: None, lambda: model.load_state_dict(best)])
    train(session, model, after_step=lambda: next(actions)())


@kind("layers frozen during training", UnitError, "layer.weight: was frozen before step 1")
def frozen_later(session: Session) -> None:
    model = Small()
    train(session, model, after_step=lambda: model.layer.requires_grad_(False))


@kind(
    "a gradient removed before the step", UnitError, "layer.bias: lost its gradient before step 0"
)
def removed(session: Session) -> None:
    model = Small()
    train(session, model, before_step=lambda: setattr(model.layer.bias, "grad", None))


@kind(
    "gradients replaced by clipped ones (p.grad = p.grad.clamp(-c, c))",
    AuditError,
    "gradients were clipped by value, at 0.001",
)
def replaced_by_clipped(session: Session) -> None:
    model = Small()

    def clip() -> None:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad = parameter.grad.clamp(-1e-3, 1e-3)

    train(session, model, before_step=clip)


@kind(
    "clipping by value for Muon, which mixes the entries of a matrix",
    UnitError,
    "embedding.weight: was clipped by value for an optimizer that mixes its entries (Muon)",
)
def clipped_for_muon(session: Session) -> None:
    model = Small()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    clip = partial(nn.utils.clip_grad_value_, matrices, 1e-3)
    train(session, model, before_step=clip, optimizer=torch.optim.Muon(matrices, 0.01))


@kind(
    "clipping between two micro-batches",
    AuditError,
    "step 0: shifts miss the applied change by",
)
def clipped_between_passes(session: Session) -> None:
    model = Small()
    optimizer = SGD(model.parameters(), 0.1)
    with session.record(model, optimizer) as recorder:
        for ids in ([0, 1, 2, 3], [4, 5, 6, 7]):
            recorder.datums(ids)
            loss_of(model, TOKENS[ids]).backward()
            nn.utils.clip_grad_value_(model.parameters(), 1e-3)
        optimizer.step()


@kind(
    "noise added to gradients",
    AuditError,
    "change gradients only by multiplying or clamping them in place",
)
def noisy(session: Session) -> None:
    model = Small()

    def add_noise() -> None:
        assert model.out.bias.grad is not None
        model.out.bias.grad += 0.01 * torch.randn(V)

    train(session, model, before_step=add_noise)


@kind("a loss that is infinite", AuditError, "step 0: training has diverged")
def infinite(session: Session) -> None:
    train(session, Small(), loss=lambda model, x: loss_of(model, x) * torch.inf)


@kind(
    "recorder.datums called twice before two forward passes",
    ConfigError,
    "recorder.datums: was called twice before the forward passes, with other datums",
)
def told_too_early(session: Session) -> None:
    model = Small()
    with session.record(model, SGD(model.parameters(), 0.1)) as recorder:
        recorder.datums([0, 1])
        recorder.datums([2, 3])
        (loss_of(model, TOKENS[:2]) + loss_of(model, TOKENS[2:4])).backward()


@kind(
    "batches of two sizes before one backward, recorder.datums not called",
    UnitError,
    "embedding.weight: is used with 12 datums, others with 6",
)
def two_sizes(session: Session) -> None:
    model = Small()
    optimizer = SGD(model.parameters(), 0.1)
    with session.record(model, optimizer):
        (loss_of(model, TOKENS) + loss_of(model, TOKENS[:6])).backward()
        optimizer.step()


@kind(
    "re-entrant gradient checkpointing",
    UnitError,
    "layer.weight: has a gradient at step 0, but no call that used it was seen: re-entrant",
)
def reentrant(session: Session) -> None:
    train(session, Reentrant())


@kind(
    "re-entrant gradient checkpointing of all units",
    UnitError,
    "Checkpoint with use_reentrant=False, or leave the unit out of units",
)
def reentrant_units(session: Session) -> None:
    train(session, Reentrant(), units=["layer.*"])


class Reentrant(Small):
    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        y_NTD = checkpoint(self.layer, x_NTD, use_reentrant=True)
        assert isinstance(y_NTD, Tensor)
        return self.out(self.norm(x_NTD + torch.tanh(y_NTD)))
