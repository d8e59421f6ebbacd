"""LayerNorm with a short second derivative.

With x̂ = (x − mean) r and r = 1/√(variance + ε), LayerNorm returns w ⊙ x̂ + b. A gradient g by its
output gives, with h = w ⊙ g and the projection P v = v − mean(v) − x̂ · mean(x̂ ⊙ v),

    by x: r P h        by w: Σ g ⊙ x̂        by b: Σ g

For vectors A, B and C along these three, with H = r P A and E = B ⊙ g − r (A · mean(h ⊙ x̂) +
h · mean(A ⊙ x̂)), the derivatives of ⟨A, r P h⟩ + ⟨B, Σ g ⊙ x̂⟩ + ⟨C, Σ g⟩ are

    by g: w ⊙ H + B ⊙ x̂ + C        by w: Σ H ⊙ g        by x: r P E − r x̂ · mean(A ⊙ r P h)

Torch takes three times as long for them. Values and first gradients come from torch's own kernels
and keep their bits; r P v is one such kernel as well.

Shapes: M row (all axes but the last), D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ALL = [True, True, True]


class ShortLayerNorms(TorchFunctionMode):
    """Within the block, LayerNorm has the second derivative of this file; for reverse mode only."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is F.layer_norm:
            x, weight, bias = args[0], given.get("weight"), given.get("bias")
            if len(args) == 2 and is_plain(x, args[1], weight, bias):
                rows_MD = x.reshape(-1, x.shape[-1])
                out_MD, _, _ = LayerNorm.apply(rows_MD, weight, bias, given["eps"])
                return out_MD.view(x.shape)
        return func(*args, **given)


def is_plain(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None) -> bool:
    """Return whether a LayerNorm is over the last axis, in one precision, with weight and bias."""
    if weight is None or bias is None or torch.is_autocast_enabled(x.device.type):
        return False
    return len(shape) == 1 and x.dtype == weight.dtype == bias.dtype


class LayerNorm(torch.autograd.Function):
    """Rows, weight and bias to the normalized rows; mean and r beside them, without gradients."""

    @staticmethod
    def forward(
        ctx: Any, x_MD: Tensor, weight_D: Tensor, bias_D: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = torch.native_layer_norm(x_MD, x_MD.shape[-1:], weight_D, bias_D, epsilon)
        out_MD, mean_M1, r_M1 = found
        ctx.save_for_backward(x_MD, weight_D, bias_D, mean_M1, r_M1)
        ctx.mark_non_differentiable(mean_M1, r_M1)
        return out_MD, mean_M1, r_M1

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        by_x_MD, by_weight_D, by_bias_D = LayerNormGradient.apply(given[0], *ctx.saved_tensors)
        return by_x_MD, by_weight_D, by_bias_D, None


class LayerNormGradient(torch.autograd.Function):
    """The three gradients of LayerNorm from g."""

    @staticmethod
    def forward(
        ctx: Any,
        g_MD: Tensor,
        x_MD: Tensor,
        weight_D: Tensor,
        bias_D: Tensor,
        mean_M1: Tensor,
        r_M1: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        width = x_MD.shape[-1:]
        found = torch.ops.aten.native_layer_norm_backward(
            g_MD, x_MD, width, mean_M1, r_M1, weight_D, bias_D, ALL
        )
        ctx.save_for_backward(g_MD, x_MD, weight_D, mean_M1, r_M1)
        ctx.shared = None
        return found

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        along_x_MD, along_weight_D, along_bias_D = given
        g_MD, x_MD, weight_D, mean_M1, r_M1 = ctx.saved_tensors
        if ctx.shared is None:  # the same for all vectors
            normal_MD = (x_MD - mean_M1) * r_M1
            h_MD = g_MD * weight_D
            by_x_MD = projected(h_MD, x_MD, mean_M1, r_M1)
            ctx.shared = normal_MD, h_MD, by_x_MD, -r_M1 * row_means(h_MD, normal_MD)
        normal_MD, h_MD, by_x_MD, slope_M1 = ctx.shared
        h_along_MD = projected(along_x_MD, x_MD, mean_M1, r_M1)
        of_g_MD = (h_along_MD * weight_D).addcmul_(normal_MD, along_weight_D).add_(along_bias_D)
        of_weight_D = (h_along_MD * g_MD).sum(0)
        e_MD = (g_MD * along_weight_D).addcmul_(along_x_MD, slope_M1)
        e_MD.addcmul_(h_MD, row_means(along_x_MD, normal_MD) * -r_M1)
        of_x_MD = projected(e_MD, x_MD, mean_M1, r_M1)
        of_x_MD.addcmul_(normal_MD, row_means(along_x_MD, by_x_MD) * -r_M1)
        return of_g_MD, of_x_MD, of_weight_D, None, None, None


def projected(v_MD: Tensor, x_MD: Tensor, mean_M1: Tensor, r_M1: Tensor) -> Tensor:
    """Return r P v: the gradient by x of LayerNorm without weights."""
    own = v_MD.contiguous(), x_MD, x_MD.shape[-1:], mean_M1, r_M1, None, None
    return torch.ops.aten.native_layer_norm_backward(*own, [True, False, False])[0]


def row_means(one_MD: Tensor, other_MD: Tensor) -> Tensor:
    """Return the mean of one ⊙ other in each row, [M, 1]."""
    return (one_MD * other_MD).mean(1, keepdim=True)
