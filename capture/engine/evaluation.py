"""Held-out evaluation: the loss and, of a task, how often the target is the likeliest token."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.corpus.config import TASKS
from capture.engine.engine import Engine
from capture.engine.observer import to_device
from capture.engine.step_plan import PlannedStep, StepPlan


@dataclass(frozen=True)
class Evaluation:
    """Loss on one held-out split after some steps."""

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
    accuracy: float | None = None
    """Share of the targets that are the likeliest token; None for a text."""
    datum_accuracy: float | None = None
    """Share of the datums of which every target is; None for a text."""


@dataclass(frozen=True)
class Scores:
    """Loss and accuracies of a model on some datums, without dropout."""

    loss: float
    """Mean cross-entropy, nats per token."""
    accuracy: float
    """Share of the targets that are the likeliest token."""
    datum_accuracy: float
    """Share of the datums of which every target is."""


def evaluate_splits(
    plan: StepPlan,
    engine: Engine,
    planned: PlannedStep,
    alive: Callable[[], None] = lambda: None,
) -> list[Evaluation]:
    """Evaluate each held-out split of the corpus; ``alive`` is called after every batch.

    What an intervention suppresses in the step just taken is suppressed here, too.

    All workers must call this if the engine partitions the model, for each forward pass is then a
    collective operation.
    """
    found = []
    is_task = plan.config.corpus.kind in TASKS
    for split in ("validation", "test"):
        datums = getattr(plan.corpus, split)
        if datums is not None:
            token_NT, target_NT = to_device(datums, engine.device)
            with engine.suppressing(planned.step):
                scores = score(
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
                    scores.loss,
                    perplexity(scores.loss),
                    target_NT.numel(),
                    *((scores.accuracy, scores.datum_accuracy) if is_task else ()),
                )
            )
    return found


def perplexity(loss: float) -> float:
    """Return e to the loss; infinity if that exceeds the range of float64."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def evaluate(
    model: nn.Module,
    token_NT: Tensor,
    target_NT: Tensor,
    *,
    batch: int,
    alive: Callable[[], None] = lambda: None,
) -> float:
    """Return the mean cross-entropy in nats per token, without dropout."""
    return score(model, token_NT, target_NT, batch=batch, alive=alive).loss


@torch.no_grad()
def score(
    model: nn.Module,
    token_NT: Tensor,
    target_NT: Tensor,
    *,
    batch: int,
    alive: Callable[[], None] = lambda: None,
) -> Scores:
    """Return loss and accuracy; ``target_NT`` holds the targets of the scored positions."""
    model.eval()
    total, right, whole = 0.0, 0, 0
    for token, target in zip(token_NT.split(batch), target_NT.split(batch), strict=True):
        logit_NTV = model(token)
        lost = F.cross_entropy(logit_NTV.flatten(0, 1), target.flatten(), reduction="sum")
        total += lost.item()
        right_NT = logit_NTV.argmax(2) == target
        right += int(right_NT.sum())
        whole += int(right_NT.all(1).sum())
        alive()
    return Scores(total / target_NT.numel(), right / target_NT.numel(), whole / len(target_NT))
