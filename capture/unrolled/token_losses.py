"""Cross-entropy at every position, with a short second derivative.

With p = softmax of a position's logits z, y its target as a one-hot vector and w the weight of its
loss, the gradient by the logits is g = w (p − y). For a vector v, the derivatives of ⟨g, v⟩ are

    by the logits: w p ⊙ (v − ⟨p, v⟩)        by w: ⟨p, v⟩ − v_target

Torch derives the same from the formulas of log-softmax and computes p twice for each v. Here p is
computed once for all v. Losses and first gradients come from torch's own kernels, so that they have
the bits of ``torch.nn.functional.cross_entropy``.

Shapes: P position, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from capture.engine.left_out import LEFT_OUT


def twice_differentiable_losses(logit_PV: Tensor, target_P: Tensor) -> Tensor:
    """Return the cross-entropy at every position, [P], in nats; for reverse mode only.

    It is 0 for datums that an intervention leaves out.
    """
    left_out_P = target_P == LEFT_OUT
    if not bool(left_out_P.any()):
        lost_P, _ = TokenLosses.apply(logit_PV, target_P)
        return lost_P
    lost_P, _ = TokenLosses.apply(logit_PV, target_P.masked_fill(left_out_P, 0))
    return lost_P.masked_fill(left_out_P, 0)


class TokenLosses(torch.autograd.Function):
    """Logits to losses.

    The second output is the log-softmax. Nothing outside this file reads it: it connects the
    gradient to the logits without a copy of them in memory.
    """

    @staticmethod
    def forward(ctx: Any, logit_PV: Tensor, target_P: Tensor) -> tuple[Tensor, Tensor]:
        log_PV = torch.log_softmax(logit_PV, 1)
        ctx.save_for_backward(log_PV, target_P)
        ctx.set_materialize_grads(False)
        return F.nll_loss(log_PV, target_P, reduction="none"), log_PV

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, None]:
        """``given``: derivatives by the losses, and by the logits from ``LogitGradient``."""
        weight_P, of_logit_PV = given
        log_PV, target_P = ctx.saved_tensors
        if weight_P is None:
            return of_logit_PV, None
        own_PV = LogitGradient.apply(log_PV, weight_P, target_P)
        return (own_PV if of_logit_PV is None else own_PV + of_logit_PV), None


class LogitGradient(torch.autograd.Function):
    """w (p − y) from log-softmax, weights and targets."""

    @staticmethod
    def forward(ctx: Any, log_PV: Tensor, weight_P: Tensor, target_P: Tensor) -> Tensor:
        ctx.save_for_backward(log_PV, weight_P, target_P)
        ctx.probability_PV = None
        none = log_PV.new_zeros(())
        of_log_PV = torch.ops.aten.nll_loss_backward(
            weight_P, log_PV, target_P, None, 0, -100, none
        )
        return torch.ops.aten._log_softmax_backward_data(of_log_PV, log_PV, 1, log_PV.dtype)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the derivatives by the *logits*, which ``TokenLosses`` hands on, and by w."""
        (of_gradient_PV,) = given
        log_PV, weight_P, target_P = ctx.saved_tensors
        if ctx.probability_PV is None:
            ctx.probability_PV = log_PV.exp()
        of_logit_PV = ctx.probability_PV * of_gradient_PV
        mean_P1 = of_logit_PV.sum(1, keepdim=True)
        of_logit_PV.addcmul_(ctx.probability_PV, mean_P1, value=-1).mul_(weight_P[:, None])
        of_target_P = of_gradient_PV.gather(1, target_P[:, None])[:, 0]
        return of_logit_PV, mean_P1[:, 0] - of_target_P, None
