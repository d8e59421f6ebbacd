"""Optimizers with which custom loops are refused."""

from typing import Any

import torch
from custom_loops import Small
from exact_loops import ADAMW, SGD
from loop_session import Session
from refused_loops import kind, train

from capture.errors import AuditError, ConfigError, UnitError
from capture.optim.rules import UnitUpdate


@kind(
    "LBFGS, Rprop, SparseAdam",
    ConfigError,
    "optimizer: is LBFGS, whose updates cannot be decomposed: it searches along a line",
)
def other_optimizer(session: Session) -> None:
    model = Small()
    train(session, model, optimizer=torch.optim.LBFGS(model.parameters()))


class ScheduleFree(torch.optim.SGD):
    """Keeps weights beside those of the model, as optimizers without a schedule do."""


@kind(
    "an optimizer that states no rule (schedule-free, SOAP, an averaging wrapper)",
    ConfigError,
    "is ScheduleFree, whose updates cannot be decomposed: it states no rule "
    "(it trains 100.0% of the model). Use an optimizer of torch.optim, or give yours the methods",
)
def without_rule(session: Session) -> None:
    model = Small()
    train(session, model, optimizer=ScheduleFree(model.parameters(), 0.1))


class Lookahead:
    """Every second step, moves the weights of its optimizer's halfway back to earlier ones."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.num_steps = optimizer, 0
        self.slow = [p.detach().clone() for group in self.groups for p in group["params"]]

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @torch.no_grad()
    def step(self) -> None:
        self.optimizer.step()
        self.num_steps += 1
        if self.num_steps % 2 == 0:
            parameters = (p for group in self.groups for p in group["params"])
            for slow, parameter in zip(self.slow, parameters, strict=True):
                parameter.copy_(slow.lerp_(parameter, 0.5))

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


@kind(
    "a wrapper that changes the weights after its optimizer's step (Lookahead)",
    UnitError,
    "embedding.weight: was changed after step 1, not by the optimizer",
)
def with_lookahead(session: Session) -> None:
    model = Small()
    wrapper = Lookahead(SGD(model.parameters(), 0.1))
    train(session, model, optimizer=wrapper)  # pyright: ignore


class Wrong(torch.optim.SGD):
    """States a rule that is not its own."""

    def preconditioner(self, update: UnitUpdate) -> float:
        return -1.1 * update.learning_rate

    def carry(self, update: UnitUpdate) -> float:
        return 0.0


@kind(
    "an optimizer that states a rule which is not its own",
    AuditError,
    "step 0: shifts miss the applied change by 1.00e-01",
)
def with_wrong_rule(session: Session) -> None:
    model = Small()
    train(session, model, optimizer=Wrong(model.parameters(), 0.1))


@kind(
    "a step with differentiable=True",
    ConfigError,
    "optimizer: is AdamW with differentiable=True, whose updates cannot be decomposed",
)
def differentiable(session: Session) -> None:
    model = Small()
    train(session, model, optimizer=ADAMW(model.parameters(), differentiable=True))


@kind("an optimizer of another model", ConfigError, "optimizer: trains no parameter of the model")
def foreign_optimizer(session: Session) -> None:
    train(session, Small(), optimizer=ADAMW(Small().parameters(), 0.01))


@kind(
    "a frozen parameter named in units", ConfigError, "is not a parameter that the optimizer trains"
)
def frozen_unit(session: Session) -> None:
    model = Small()
    model.embedding.requires_grad_(False)
    train(session, model, units=["*"])
