"""Kinds of custom training loops that are recorded exactly, by the name that the docs give them."""

from collections.abc import Callable
from typing import Any

import torch
from custom_loops import loss_of, tokens
from loop_session import Session, Share
from torch import Tensor, nn

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
Loop = Callable[[Session], None]
EXACT: dict[str, Loop] = {}
TOKENS = tokens()


def kind(name: str) -> Callable[[Loop], Loop]:
    def add(loop: Loop) -> Loop:
        EXACT[name] = loop
        return loop

    return add


def shares_of(
    model: nn.Module, ids: list[int], loss: Callable[..., Tensor] = loss_of
) -> dict[int, Share]:
    """Return each datum's part of the mean loss of a batch of datums of equal length."""
    return {i: lambda i=i: loss(model, TOKENS[[i]]) / len(ids) for i in ids}


def train(
    session: Session,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    loss: Callable[..., Tensor] = loss_of,
    before_step: Callable[[], object] = lambda: None,
    after_step: Callable[[], object] = lambda: None,
    set_to_none: bool = True,
    steps: int = 2,
    **more: Any,
) -> None:
    """Take steps of 4 datums each."""
    with session.record(model, optimizer, datums=12, **more) as recorder:
        for step in range(steps):
            ids = [(5 * step + i) % 12 for i in range(4)]
            recorder.datums(ids)
            loss(model, TOKENS[ids]).backward()
            before_step()
            session.expect(shares_of(model, ids, loss))
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
            after_step()
