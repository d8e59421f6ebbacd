"""Optimizers and units with which custom loops are recorded exactly."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from custom_loops import D, Small, loss_of
from exact_loops import ADAM, ADAMW, EXACT, SGD, TOKENS, kind, shares_of, train
from lion import Halving, Lion, ScheduleFreeSGD
from loop_session import Session
from torch import Tensor, nn


def transformers_adafactor(model: nn.Module) -> torch.optim.Optimizer:
    optimization = pytest.importorskip("transformers.optimization")
    return optimization.Adafactor(model.parameters(), lr=0.01, beta1=0.9, relative_step=False)


def optimizers() -> dict[str, Callable[[nn.Module], torch.optim.Optimizer]]:
    def grouped(m: nn.Module) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in m.parameters() if p.dim() > 1]},
            {"params": [p for p in m.parameters() if p.dim() == 1], "lr": 0.0, "weight_decay": 0.0},
        ]
        return ADAMW(groups, lr=0.01, weight_decay=0.1)

    return {
        "SGD": lambda m: SGD(m.parameters(), 0.1),
        "SGD with momentum and decay": lambda m: SGD(
            m.parameters(), 0.1, momentum=0.9, weight_decay=0.01
        ),
        "SGD with Nesterov momentum": lambda m: SGD(
            m.parameters(), 0.1, momentum=0.9, nesterov=True
        ),
        "SGD, fused": lambda m: SGD(m.parameters(), 0.1, momentum=0.9, fused=True),
        "Adam with L2 decay": lambda m: ADAM(m.parameters(), 0.01, weight_decay=0.1),
        "AdamW with parameter groups, one with learning rate 0": grouped,
        "AdamW, foreach": lambda m: ADAMW(m.parameters(), 0.01, foreach=True),
        "AdamW, fused": lambda m: ADAMW(m.parameters(), 0.01, fused=True),
        "AdamW with amsgrad": lambda m: ADAMW(m.parameters(), 0.01, amsgrad=True),
        "SGD with dampening, maximize": lambda m: SGD(
            m.parameters(), 0.1, momentum=0.9, dampening=0.5, maximize=True
        ),
        "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), 0.01),
        "RMSprop, centered, with momentum and decay": lambda m: torch.optim.RMSprop(
            m.parameters(), 0.01, centered=True, momentum=0.9, weight_decay=0.01
        ),
        "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), 0.1, lr_decay=0.1),
        "Adagrad, fused": lambda m: torch.optim.Adagrad(m.parameters(), 0.1, fused=True),
        "Adadelta": lambda m: torch.optim.Adadelta(m.parameters()),
        "ASGD": lambda m: torch.optim.ASGD(m.parameters(), 0.1, lambd=0.01),
        "Adamax": lambda m: torch.optim.Adamax(m.parameters(), 0.01),
        "NAdam": lambda m: torch.optim.NAdam(m.parameters(), 0.01, weight_decay=0.1),
        "RAdam": lambda m: torch.optim.RAdam(m.parameters(), 0.01),
        "Adafactor": lambda m: torch.optim.Adafactor(m.parameters(), 0.1),
        "Adafactor of transformers": lambda m: transformers_adafactor(m),
        "Muon (shifts by the map of its orthogonalization)": lambda m: torch.optim.Muon(
            [p for p in m.parameters() if p.dim() == 2], 0.01
        ),
        "an optimizer that calls super().step() and states its rule": lambda m: Halving(
            m.parameters(), 0.1
        ),
        "schedule-free SGD, which states its own rule": lambda m: ScheduleFreeSGD(
            m.parameters(), 0.1
        ),
        "Lion, which states its own rule": lambda m: Lion(m.parameters(), 0.01, weight_decay=0.1),
    }


def with_optimizer(make: Callable[[nn.Module], torch.optim.Optimizer], session: Session) -> None:
    model = Small()
    train(session, model, make(model), after_step=model.zero_grad, steps=3)


for _name, _make in optimizers().items():
    EXACT[_name] = partial(with_optimizer, _make)


@kind("Muon for matrices beside AdamW for the rest, which is left out")
def two_optimizers(session: Session) -> None:
    model = Small()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    other = ADAMW([p for p in model.parameters() if p.dim() < 2], 0.01)

    def step_of_other() -> None:
        other.step()
        other.zero_grad()

    train(session, model, torch.optim.Muon(matrices, 0.01), after_step=step_of_other)


@kind("a learning rate schedule")
def schedule(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    train(session, model, optimizer, after_step=plan.step, steps=4)


@kind("an optimizer in a wrapper (accelerate, Fabric, a TrainerCallback's)")
def wrapped_optimizer(session: Session) -> None:
    class Wrapper(torch.optim.Optimizer):
        """Keeps its optimizer and has no hooks of its own, like accelerate's."""

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

        @property
        def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore
            return self.optimizer.param_groups

        def step(self, closure: Any = None) -> Any:
            return self.optimizer.step(closure)

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.optimizer.zero_grad(set_to_none)

    model = Small()
    train(session, model, Wrapper(ADAMW(model.parameters(), 0.01)))


@kind("a step with a closure (Lightning's automatic optimization)")
def closure(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer) as recorder:
        for ids in ([0, 1, 2, 3], [4, 5, 6, 7]):

            def forward_and_backward(ids: list[int] = ids) -> Tensor:
                recorder.datums(ids)
                optimizer.zero_grad()
                loss = loss_of(model, TOKENS[ids])
                loss.backward()
                return loss

            session.expect(shares_of(model, ids))
            optimizer.step(closure=forward_and_backward)


# --- units ----------------------------------------------------------------------------------------


@kind("frozen layers with default units")
def frozen(session: Session) -> None:
    model = Small()
    model.embedding.requires_grad_(False)
    model.norm.requires_grad_(False)
    train(session, model, ADAMW(model.parameters(), 0.01))


@kind("an optimizer that trains a part of the model, with default units")
def trained_in_part(session: Session) -> None:
    model = Small()
    train(session, model, ADAMW(model.layer.parameters(), 0.01), after_step=model.zero_grad)


@kind("units left out by !pattern")
def excluded(session: Session) -> None:
    model = Small()
    train(session, model, ADAMW(model.parameters(), 0.01), units=["*", "!embedding.*", "!*.bias"])


@kind("low-rank adapters (LoRA)")
def adapters(session: Session) -> None:
    class Adapted(Small):
        def __init__(self) -> None:
            super().__init__()
            self.requires_grad_(False)
            self.lora_a = nn.Linear(D, 2, bias=False)
            self.lora_b = nn.Linear(2, D, bias=False)

        def forward(self, token_NT: Tensor) -> Tensor:
            x_NTD = self.embedding(token_NT)
            return self.out(self.norm(self.layer(x_NTD) + self.lora_b(self.lora_a(x_NTD))))

    model = Adapted()
    train(session, model, ADAMW(model.parameters(), 0.01))
