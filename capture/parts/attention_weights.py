"""Attention weights of any model: what its softmax, or its fused attention, computes in each layer.

A function mode sees the calls. A fused call (``scaled_dot_product_attention``) never forms the
weights, so they are computed from the same queries, keys and mask.

Shapes: N datum, H head, T position, S position attended to, E width of a head.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from capture.errors import ConfigError
from capture.gradients.attention import ATTENTION, run_visibly
from capture.parts.finding import call
from capture.parts.parted import Parted
from capture.parts.stack import watched

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
FUSED = F.scaled_dot_product_attention


@torch.inference_mode()
def attention_weights(model: Parted, token_NT: Tensor) -> list[Tensor]:
    """Return the attention weights of each layer, [N, H, T, S].

    Raises ``ConfigError`` for a layer that does not compute them once.
    """
    found: dict[int, list[Tensor]] = {}
    inside: int | None = None
    N, T = token_NT.shape

    def keep(weight: Tensor) -> None:
        if inside is not None and weight.shape[-2:] == (T, T):
            weight_NHTS = weight if weight.dim() == 4 else weight.unflatten(0, (N, -1))
            found.setdefault(inside, []).append(weight_NHTS)

    def entering(number: int, _: Tensor) -> None:
        nonlocal inside
        inside = number

    def left(number: int, _: Any) -> None:
        nonlocal inside
        inside = None

    layers = [model.network.get_submodule(name) for name in model.parts.layers]
    with watched(layers, entering, left), SeenAttention(keep):
        call(model.network, token_NT.to(model.device), model.given)
    for number, own in enumerate(model.parts.attention):
        seen = found.get(number, [])
        if own is None or len(seen) != 1 or seen[0].shape[:2] != (N, own.heads):
            problem = f"the attention weights of layer {number} are not found"
            looked = "Looked for one softmax, or scaled_dot_product_attention, of [N, heads, T, T]"
            raise ConfigError(type(model.network).__name__, problem, looked)
    return [found[number][0] for number in range(len(layers))]


class SeenAttention(TorchFunctionMode):
    """Calls ``keep`` with the weights of every attention: [N, H, T, S], or [N · H, T, S]."""

    def __init__(self, keep: Any) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            return run_visibly(self, args, kwargs)
        if func is FUSED:
            self.keep(fused_weights(*args, **kwargs))
        output = func(*args, **kwargs)
        if func in SOFTMAX and output.dim() in (3, 4):
            self.keep(output)
        return output


def fused_weights(
    query_NHTE: Tensor,
    key_NHSE: Tensor,
    value_NHSE: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the weights of ``scaled_dot_product_attention``, as its documentation has them."""
    if enable_gqa:
        key_NHSE = key_NHSE.repeat_interleave(query_NHTE.shape[-3] // key_NHSE.shape[-3], -3)
    factor = 1 / math.sqrt(query_NHTE.shape[-1]) if scale is None else scale
    score_NHTS = query_NHTE @ key_NHSE.transpose(-2, -1) * factor
    if is_causal:
        seen_TS = torch.ones(score_NHTS.shape[-2:], dtype=torch.bool, device=score_NHTS.device)
        score_NHTS = score_NHTS.masked_fill(~seen_TS.tril(), -math.inf)
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        score_NHTS = score_NHTS.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        score_NHTS = score_NHTS + attn_mask
    return score_NHTS.softmax(-1)
