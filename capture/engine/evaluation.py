"""How well held-out text is predicted, after each epoch."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.engine.engine import Engine
from capture.engine.observer import to_device
from capture.engine.step_plan import PlannedStep, StepPlan


@dataclass(frozen=True)
class Evaluation:
    """How a held-out split is predicted after an epoch."""

    step: int
    epoch: int
    split: str
    loss: float
    perplexity: float
    tokens: int


def evaluate_splits(plan: StepPlan, engine: Engine, turn: PlannedStep) -> list[Evaluation]:
    """Loss on each held-out split of the corpus; by all workers where the model is scattered."""
    found = []
    for split in ("validation", "test"):
        datums = getattr(plan.corpus, split)
        if datums is not None:
            token_NT, target_NT = to_device(datums, engine.device)
            loss = evaluate(
                engine.forward_model, token_NT, target_NT, batch=plan.config.training.batch
            )
            found.append(
                Evaluation(
                    turn.step + 1, turn.epoch, split, loss, perplexity(loss), target_NT.numel()
                )
            )
    return found


def perplexity(loss: float) -> float:
    """e to the loss; infinite above what a float64 can hold."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


@torch.no_grad()
def evaluate(model: nn.Module, token_NT: Tensor, target_NT: Tensor, *, batch: int) -> float:
    """Mean cross-entropy in nats per token, dropout off."""
    model.eval()
    total = 0.0
    for token, target in zip(token_NT.split(batch), target_NT.split(batch), strict=True):
        total += F.cross_entropy(
            model(token).flatten(0, 1), target.flatten(), reduction="sum"
        ).item()
    return total / target_NT.numel()
