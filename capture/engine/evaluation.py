"""Held-out evaluation after each epoch."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.engine.engine import Engine
from capture.engine.observer import to_device
from capture.engine.step_plan import PlannedStep, StepPlan


@dataclass(frozen=True)
class Evaluation:
    """Loss on one held-out split after an epoch."""

    step: int
    """Number of steps taken."""
    epoch: int
    split: str
    """validation or test."""
    loss: float
    """Mean cross-entropy, nats per token."""
    perplexity: float
    """e to the loss."""
    tokens: int
    """Number of predicted tokens."""


def evaluate_splits(
    plan: StepPlan,
    engine: Engine,
    planned: PlannedStep,
    alive: Callable[[], None] = lambda: None,
) -> list[Evaluation]:
    """Evaluate each held-out split of the corpus; ``alive`` is called after every batch.

    All workers must call this if the engine partitions the model, for each forward pass is then a
    collective operation.
    """
    found = []
    for split in ("validation", "test"):
        datums = getattr(plan.corpus, split)
        if datums is not None:
            token_NT, target_NT = to_device(datums, engine.device)
            loss = evaluate(
                engine.forward_model,
                token_NT,
                target_NT,
                batch=plan.config.training.batch,
                alive=alive,
            )
            found.append(
                Evaluation(
                    planned.step + 1,
                    planned.epoch,
                    split,
                    loss,
                    perplexity(loss),
                    target_NT.numel(),
                )
            )
    return found


def perplexity(loss: float) -> float:
    """Return e to the loss; infinity if that exceeds the range of float64."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


@torch.no_grad()
def evaluate(
    model: nn.Module,
    token_NT: Tensor,
    target_NT: Tensor,
    *,
    batch: int,
    alive: Callable[[], None] = lambda: None,
) -> float:
    """Return the mean cross-entropy in nats per token, without dropout."""
    model.eval()
    total = 0.0
    for token, target in zip(token_NT.split(batch), target_NT.split(batch), strict=True):
        total += F.cross_entropy(
            model(token).flatten(0, 1), target.flatten(), reduction="sum"
        ).item()
        alive()
    return total / target_NT.numel()
