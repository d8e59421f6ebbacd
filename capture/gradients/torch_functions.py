"""Readers: how each known torch function uses the parameters that are passed to it.

There is one reader per function, with that function's signature. It returns a ``TorchCall``: for
each parameter the form of its gradient, and the activation that enters it. It raises
``NotSplittable`` if the gradient cannot be split by datum.

Shapes: N datum, L position in an image, I input channels times kernel positions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from capture.gradients.factors import Kind


class NotSplittable(Exception):
    """A call has no factors; the message completes the sentence "<unit> is used by …"."""


@dataclass(frozen=True)
class ParameterRole:
    """The form of a parameter's gradient; the fields are those of ``Factor``."""

    kind: Kind
    transposed: bool = False
    absent: tuple[int, int] = (0, 0)
    """Rows of the parameter before and after those that were passed, if only a part was."""


@dataclass(frozen=True)
class TorchCall:
    """What a torch call says about the gradients of the parameters among its arguments."""

    roles: list[tuple[Tensor | None, ParameterRole]]
    """Each argument that may be a captured parameter (None if not passed), and its role."""
    a: Tensor | None = None
    """Activation that enters the gradients: features last, or the rows looked up (int64)."""
    feature_axis: int = -1
    """Axis of the output that holds its features."""
    shared: bool = False
    """Whether the output appears to have no datum axis, so that all datums use it."""
    padding: int | None = None
    """Row of an embedding that receives no gradient (``padding_idx``)."""


SUM = ParameterRole("sum")
SCALE = ParameterRole("scale")
OUTER = ParameterRole("outer")


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> TorchCall:
    return TorchCall([(weight, OUTER), (bias, SUM)], input)


def addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> TorchCall:
    """Read bias + x W with W stored [I, O], as Hugging Face's Conv1D computes it."""
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
    """Read a look-up: of the batch's tokens, or of 0, 1, 2, …, positions shared by all datums."""
    if max_norm is not None or scale_grad_by_freq:
        raise NotSplittable("embedding with max_norm or scale_grad_by_freq")
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    # A one-dimensional 0, 1, 2, … is nearly always ``torch.arange`` for learned positions. The tape
    # then expands the output along N, so that each datum gets a δ of its own.
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
    with torch.no_grad():  # x̂: the input normalized, before weight and bias
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
    """Read a product of an activation and one value per feature, as in a hand-written norm."""
    weight, x = feature_operands(input, other, "mul")
    return TorchCall([(weight, SCALE)], x)


def add(input: Tensor, other: Tensor, *, alpha: float = 1) -> TorchCall:
    """Read a sum of an activation and one value per feature, a hand-written bias."""
    if alpha != 1:
        raise NotSplittable("add with alpha")
    return TorchCall([(feature_operands(input, other, "add")[0], SUM)])


def feature_operands(first: Tensor, second: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the operand with one value per feature, and the activation with features last.

    Raises ``NotSplittable`` if the operands do not have these shapes.
    """
    for weight, x in ((first, second), (second, first)):
        if not isinstance(weight, Tensor) or not isinstance(x, Tensor):
            continue
        if weight.dim() == 1 < x.dim() and weight.shape[0] == x.shape[-1]:
            return weight, x
    raise NotSplittable(f"{name} by other than one value per feature")


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> TorchCall:
    """Read a convolution as a linear layer at each output position, whose input is the patch."""
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
    """Pad as conv2d does for "same" (an odd remainder goes at the end) or "valid" (no padding)."""
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
"""Torch function → its reader."""

PARTING = {torch.Tensor.split, torch.split, torch.Tensor.chunk, torch.chunk}
"""Functions that return parts of a tensor."""

CASTS = {
    *(torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.float, torch.Tensor.half),
    *(torch.Tensor.bfloat16, torch.Tensor.double),
}


def same_gradient(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Return whether the parameter's gradient equals the result's: a cast, or a number added."""
    if func in CASTS:
        return True
    numbers = sum(isinstance(arg, int | float) for arg in args)
    return func in (torch.add, torch.Tensor.add) and len(args) == 2 and numbers == 1


def flatten_arguments(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the values, replacing each list or tuple by its items."""
    for value in values:
        if type(value) in (list, tuple):
            yield from value
        else:
            yield value


def read_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> TorchCall:
    """Return what a call does; raises ``NotSplittable`` for unknown functions or arguments."""
    if func not in READERS:
        raise NotSplittable(function_name(func))
    try:
        return READERS[func](*args, **kwargs)
    except TypeError as error:
        raise NotSplittable(f"{function_name(func)} with unusual arguments") from error


def function_name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))
