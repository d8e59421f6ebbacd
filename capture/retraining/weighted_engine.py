"""An engine whose batches have a weight per datum, in float32 or float64, without capture.

Shapes: N slot, T token, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from capture.engine.build import build_engine
from capture.engine.engine import Engine
from capture.engine.step import LastToken, Step
from capture.engine.step_plan import StepPlan
from capture.gradients.factors import Factors


class WeightedEngine(Engine):
    """Takes steps on Σ w_i · loss_i / (N · T), with w_i the weight of the datum in slot i.

    If all weights of a micro-batch are 1, its step has the bits of ``Engine``'s.
    """

    weight_N: Tensor | None = None
    """Weights of the step that is being taken; None: all 1."""

    @classmethod
    def of(
        cls, plan: StepPlan, *, beginning: bool = False, exact: bool = False
    ) -> "WeightedEngine":
        """Return an engine of a plan; ``exact``: compute in float64.

        ``beginning``: load the pretrained weights that the run starts from, if any.
        """
        plain = build_engine(plan, (), beginning=beginning)
        model = plain.model.double() if exact else plain.model
        return cls(
            model,
            plain.config,
            units={},
            last_only=False,
            seed=plain.seed,
            num_steps=plan.num_steps,
            suppression=plain.suppression,
        )

    def weighted_step(
        self, token_NT: Tensor, target_NT: Tensor, weight_N: Tensor, *, step: int, epoch: int
    ) -> Step:
        """Like ``step``, with a weight for each slot."""
        self.weight_N = weight_N
        try:
            return self.step(token_NT, target_NT, step=step, epoch=epoch)
        finally:
            self.weight_N = None

    def micro_batch_gradients(
        self, token_NT: Tensor, target_NT: Tensor, slots: range, step: int
    ) -> tuple[float, Factors, LastToken | None]:
        own = slice(slots.start, slots.stop)
        weight_N = torch.ones(len(token_NT)) if self.weight_N is None else self.weight_N
        weight_N = weight_N[own].to(self.device)
        exact = next(self.model.parameters()).dtype == torch.float64
        if bool((weight_N == 1).all()) and not exact:
            return super().micro_batch_gradients(token_NT, target_NT, slots, step)
        masks = self.masks(slots, step, token_NT.shape[1])
        with self.autocast():
            logit_NTV = self.forward_model(token_NT[own], masks)
        logit_NVT = (logit_NTV if exact else logit_NTV.float()).transpose(1, 2)
        lost_NT = F.cross_entropy(logit_NVT, target_NT[own], reduction="none")
        loss = (weight_N.to(lost_NT)[:, None] * lost_NT).sum() / target_NT.numel()
        loss.backward()
        return loss.item(), {}, None
