"""What the torch functions that capture knows do with the parameters given to them.

One reader a function, with that function's own signature. A reader says for every parameter how its
gradient is made, and which activation goes into it; it raises ``NotSplittable`` where that cannot be said
datum by datum.

Shapes: N datum, L image place, I input channels times the kernel's places.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from capture.gradients.factors import Kind


class NotSplittable(Exception):
    """A use of parameters that has no factors, in words that go after "is used by"."""


@dataclass(frozen=True)
class ParameterRole:
    """How a parameter's gradient is made: see ``Factor``."""

    kind: Kind
    transposed: bool = False


@dataclass(frozen=True)
class TorchCall:
    """One call, as far as the gradients of its parameters are concerned."""

    roles: list[tuple[Tensor | None, ParameterRole]]
    a: Tensor | None = None
    """The activation that goes into them: features last, or the rows looked up (int64)."""
    feature_axis: int = -1
    """Which axis of the output holds its features."""
    shared: bool = False
    """The output has no axis of datums, it seems: all of them use it."""
    padding: int | None = None
    """The row that receives nothing."""


SUM = ParameterRole("sum")
SCALE = ParameterRole("scale")
OUTER = ParameterRole("outer")


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> TorchCall:
    return TorchCall([(weight, OUTER), (bias, SUM)], input)


def addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> TorchCall:
    """Hugging Face's Conv1D: bias + x W with W stored [I, O]."""
    if (beta, alpha) != (1, 1):
        raise NotSplittable("addmm with beta or alpha")
    return TorchCall([(mat2, ParameterRole("outer", transposed=True)), (input, SUM)], mat1)


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> TorchCall:
    """A look-up for the batch; or of 0, 1, 2, … : positions, once for all datums."""
    if max_norm is not None or scale_grad_by_freq:
        raise NotSplittable("embedding with max_norm or scale_grad_by_freq")
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    counting = input.dim() == 1 and torch.equal(input, torch.arange(len(input)).to(input))
    return TorchCall([(weight, ParameterRole("rows"))], input, shared=counting, padding=padding_idx)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> TorchCall:
    require_one_axis(normalized_shape, "LayerNorm")
    with torch.no_grad():
        return TorchCall(
            [(weight, SCALE), (bias, SUM)], F.layer_norm(input.float(), normalized_shape, eps=eps)
        )


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> TorchCall:
    require_one_axis(normalized_shape, "RMSNorm")
    with torch.no_grad():
        return TorchCall([(weight, SCALE)], F.rms_norm(input.float(), normalized_shape, eps=eps))


def require_one_axis(normalized_shape: Sequence[int], kind: str) -> None:
    if len(normalized_shape) != 1:
        raise NotSplittable(f"{kind} over more than one axis")


def mul(input: Tensor, other: Tensor) -> TorchCall:
    """A norm written out: one value a feature times the activation."""
    weight, x = feature_operands(input, other, "mul")
    return TorchCall([(weight, SCALE)], x)


def add(input: Tensor, other: Tensor, *, alpha: float = 1) -> TorchCall:
    """A bias written out."""
    if alpha != 1:
        raise NotSplittable("add with alpha")
    return TorchCall([(feature_operands(input, other, "add")[0], SUM)])


def feature_operands(first: Tensor, second: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The operand with one value a feature, and the activation that has these features last."""
    for weight, x in ((first, second), (second, first)):
        if not isinstance(weight, Tensor) or not isinstance(x, Tensor):
            continue
        if weight.dim() == 1 < x.dim() and weight.shape[0] == x.shape[-1]:
            return weight, x
    raise NotSplittable(f"{name} other than of one value a feature")


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> TorchCall:
    """A linear layer at every place of the image, its input the patch there."""
    if groups != 1 or input.dim() != 4:
        raise NotSplittable(
            "conv2d with groups" if groups != 1 else "conv2d without an axis of datums"
        )
    kernel = weight.shape[2:]
    if isinstance(padding, str):
        input, padding = pad_like_conv2d(input, kernel, dilation, padding), 0
    with torch.no_grad():
        patch_NIL = F.unfold(input, kernel, dilation, padding, stride)
    return TorchCall([(weight, OUTER), (bias, SUM)], patch_NIL.transpose(1, 2), feature_axis=1)


def pad_like_conv2d(x: Tensor, kernel: Sequence[int], dilation: Any, padding: str) -> Tensor:
    """As conv2d pads where ``padding`` is "same" (the odd one after) or "valid" (nothing)."""
    if padding == "valid":
        return x
    steps = (dilation, dilation) if isinstance(dilation, int) else dilation
    high, wide = (step * (size - 1) for step, size in zip(steps, kernel, strict=True))
    return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


READERS: dict[Callable[..., Any], Callable[..., TorchCall]] = {
    F.linear: linear,
    torch.addmm: addmm,
    F.embedding: embedding,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    F.conv2d: conv2d,
    torch.mul: mul,
    torch.Tensor.mul: mul,
    torch.add: add,
    torch.Tensor.add: add,
}
"""What capture can split, by the function that torch calls."""

CASTS = {
    *(torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.float, torch.Tensor.half),
    *(torch.Tensor.bfloat16, torch.Tensor.double),
}


def same_gradient(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether a parameter's gradient is that of the result: another type, or a number added."""
    if func in CASTS:
        return True
    numbers = sum(isinstance(arg, int | float) for arg in args)
    return func in (torch.add, torch.Tensor.add) and len(args) == 2 and numbers == 1
