"""The loss of one training step as a differentiable function of the weights.

It repeats the forward pass of the step: the same datums in the same slots, the same dropout masks,
the same precision. Its sum over all positions is the loss that the step reduced.

Shapes: N datum (slot), T token, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from capture.engine.engine import Engine
from capture.models.dropout import Masks


@dataclass(frozen=True, eq=False)
class StepLoss:
    """The batch of one step, and the model to run it through."""

    engine: Engine
    """Supplies model, masks and precision. Its weights are not used."""
    step: int
    token_NT: Tensor
    target_NT: Tensor

    def shares(self, weights: Mapping[str, Tensor], slots: range | None = None) -> Tensor:
        """Return every position's share of the mean loss of the whole batch, [N, T], in nats.

        The sum over all slots and positions is the loss of the step. ``weights``: by parameter
        name; a parameter that is left out keeps the model's value. With float64 weights all is
        computed in float64. ``slots``: consecutive slots, None for all.
        """
        slots = range(len(self.token_NT)) if slots is None else slots
        target_NT = self.target_NT[slots.start : slots.stop]
        return token_losses(self.logits(weights, slots), target_NT) / self.target_NT.numel()

    def logits(self, weights: Mapping[str, Tensor], slots: range) -> Tensor:
        """Return the logits of consecutive slots, [N, T, V]; at least float32."""
        own = slice(slots.start, slots.stop)
        pool_NK = None if self.pool_NK is None else self.pool_NK[own]
        model = self.engine.model.train()
        with self.engine.autocast(), self.engine.suppressing(self.step):
            given = self.token_NT[own], Masks(pool_NK)
            logit_NTV = functional_call(model, dict(weights), given)
        return logit_NTV if logit_NTV.dtype == torch.float64 else logit_NTV.float()

    @cached_property
    def pool_NK(self) -> Tensor | None:
        """Dropout multipliers of the whole batch; None without dropout."""
        slots = range(len(self.token_NT))
        return self.engine.masks(slots, self.step, self.token_NT.shape[1]).pool_NK

    @property
    def micro_batches(self) -> list[range]:
        """The slots of each micro-batch of the step."""
        size = len(self.token_NT) // self.engine.config.accumulate
        return [range(start, start + size) for start in range(0, len(self.token_NT), size)]


def token_losses(logit_NTV: Tensor, target_NT: Tensor) -> Tensor:
    """Return the cross-entropy at every position, [N, T]; half precision becomes float32 first."""
    if logit_NTV.dtype != torch.float64:
        logit_NTV = logit_NTV.float()
    lost = F.cross_entropy(logit_NTV.flatten(0, 1), target_NT.flatten(), reduction="none")
    return lost.view(target_NT.shape)
