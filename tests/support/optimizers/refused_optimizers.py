"""Optimizers with which custom loops are refused."""

import torch
from custom_loops import Small
from exact_loops import ADAMW
from loop_session import Session
from refused_loops import kind, train

from capture.errors import AuditError, ConfigError
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
    "is ScheduleFree, whose updates cannot be decomposed (it trains 100.0% of the model)",
)
def without_rule(session: Session) -> None:
    model = Small()
    train(session, model, optimizer=ScheduleFree(model.parameters(), 0.1))


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
