"""Follow the axis of datums from the model's inputs through its activations, call by call.

The number of rows does not tell: an expert may get as many chosen rows as the batch has datums.
So with ``fallback="vmap"``, a call is split as it is only if its rows are known to be the datums'.

Shapes: N datum.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from capture.custom_loop.rerun.row_indices import LOST, axis_after_index
from capture.gradients.torch_functions import flatten_arguments, function_name

PERMUTING = {
    *("transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "permute", "t", "unsqueeze"),
    *("adjoint",),
}
RESHAPING = {"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "_unsafe_view"}
CHOOSING = {
    *("nonzero", "argwhere", "masked_select", "take", "unique", "bincount", "histc"),
    *("_pack_padded_sequence", "_pad_packed_sequence", "combinations", "block_diag", "kron"),
}
"""Functions whose result has no axis of datums."""
ALONG: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(("chunk", "split", "tensor_split", "split_with_sizes"), (2, 0)),
    **dict.fromkeys(("narrow", "select", "index_select", "gather"), (1, None)),
    **dict.fromkeys(("unbind",), (1, 0)),
    **dict.fromkeys(("sort", "argsort", "softmax", "log_softmax", "cumsum", "cumprod"), (1, -1)),
    **dict.fromkeys(("flip", "logsumexp", "renorm"), (1, None)),
    **dict.fromkeys(("topk", "roll", "take_along_dim", "kthvalue", "repeat_interleave"), (2, -1)),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin"), (1, None)),
    **dict.fromkeys(("prod", "std", "var", "norm", "median", "any", "all"), (1, None)),
}
"""Functions along axes → where these are among the arguments, and what holds without them."""
WRITING = {"index_add", "index_put", "index_copy", "scatter", "scatter_add", "masked_scatter"}
WRITING |= {f"{name}_" for name in WRITING} | {"scatter_reduce", "scatter_reduce_"}
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


class RowAxes:
    """The axis of datums of each activation, ``LOST`` if it has none; unknown for others."""

    def __init__(self) -> None:
        self.axes: Any = WeakTensorKeyDictionary()
        self.num_rows = 1

    def begin(self, inputs: Sequence[Tensor], num_rows: int) -> None:
        """Note the inputs of a forward pass, with the datum in their first axis."""
        self.num_rows = num_rows
        for x in inputs:
            if x.dim() and x.shape[0] == num_rows and x not in self.axes:
                self.axes[x] = 0

    def of(self, x: Tensor) -> int | None:
        return self.axes.get(x)

    def are_others(self, out: Tensor, activations: Sequence[Tensor]) -> bool:
        """Return whether the rows of a call's output are not known to be the datums, one by one.

        ``activations``: its arguments beside units and what all datums share. What is unknown has
        come through a function that hides its calls, unless no gradient leads through it.
        """
        axis = self.of(out)
        if axis is not None:
            return axis != 0
        return any(x.grad_fn is not None for x in activations)

    def set(self, out: Any, axis: int) -> None:
        for x in flatten_arguments((out,)):
            if isinstance(x, Tensor):
                self.axes[x] = axis

    def note(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Note the axis of datums in the result of a call."""
        name = name_of(func)
        if name == "__setitem__":
            self.note_written(args[0], args[2], args[1])
            return
        given = list(flatten_arguments((*args, *kwargs.values())))
        if name == "__getitem__":
            given += list(flatten_arguments((args[1],)))
        known = [x for x in given if isinstance(x, Tensor) and x in self.axes]
        known = [x for x in known if not isinstance(x, nn.Parameter)]
        if not known:
            return
        if name in RECURRENT:
            self.set(out[0], self.axes[known[0]])
            self.set(out[1:], 1)  # states have it second, whatever batch_first is
            return
        outputs = [x for x in flatten_arguments((out,)) if isinstance(x, Tensor)]
        for x in outputs:
            self.axes[x] = self.result(name, func, args, kwargs, known, x)

    def result(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        known: Sequence[Tensor],
        out: Tensor,
    ) -> int:
        """Return the axis of datums in an output; ``known``: arguments whose axes are known."""
        axes = [self.axes[x] for x in known]
        first = args[0] if args else next(iter(kwargs.values()))
        base = self.of(first) if isinstance(first, Tensor) else None
        if name in WRITING:
            return written(name, base, args, kwargs, known, axes)
        if name == "__getitem__":
            return axes[0] if base is None else axis_after_index(args[0], args[1], base)
        if name in CHOOSING or LOST in axes or (name == "where" and len(args) == 1):
            return LOST
        if name in ("cat", "concat", "stack", "hstack", "vstack", "concatenate"):
            return joined(name, args, kwargs, axes, out)
        if name == "embedding" and len(known) > 1:
            return LOST
        if name == "einsum":
            return contracted(args, self.of)
        if name in ("matmul", "__matmul__", "mm", "__rmatmul__", "mv", "linear", "addmm"):
            return multiplied(name, args, kwargs, self.of)
        x, axis = known[0], axes[0]
        if name in PERMUTING or name.startswith(("T.", "mT.", "H.", "mH.")):
            return permuted(func, args, kwargs, axis)
        if name in RESHAPING:
            return reshaped(x.shape, out.shape, axis, self.num_rows)
        if name in ALONG and base is not None:
            return along(name, args, kwargs, base, out)
        if name == "squeeze":
            return axis - sum(n == 1 for n in x.shape[:axis]) if out.dim() < x.dim() else axis
        return elementwise(known, axes, out)

    def note_written(self, base: Any, source: Any, index: Any) -> None:
        """Note that ``base[index] = source``."""
        axis = self.of(source) if isinstance(source, Tensor) else None
        before = self.of(base)
        if axis is None:
            return
        whole = index[0] if isinstance(index, tuple) and index else index
        if before is not None:
            moves = axis != LOST and before == 0 and isinstance(whole, Tensor | list)
            self.axes[base] = LOST if moves else before
        elif axis == LOST or isinstance(whole, Tensor | list):
            self.axes[base] = LOST
        else:
            self.axes[base] = axis + isinstance(whole, int)


def name_of(func: Callable[..., Any]) -> str:
    """Return the name of a function; that of ``Tensor.T`` is ``T.__get__``."""
    name = function_name(func)
    owner = getattr(func, "__self__", None)
    return f"{getattr(owner, '__name__', '')}.{name}" if name == "__get__" else name


def written(
    name: str,
    base: int | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    known: Sequence[Tensor],
    axes: Sequence[int],
) -> int:
    """Return the axis of a tensor into which rows were written at places given by a tensor.

    Chosen rows are written back to their places; rows of datums are moved to others.
    """
    pairs = zip(known, axes, strict=True)
    sources = [axis for x, axis in pairs if x is not args[0] and x.is_floating_point()]
    if base is None:
        return LOST
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    along_datums = name.startswith(("index_put", "masked")) or dim == base
    return LOST if along_datums and sources and LOST not in sources else base


def joined(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], axes: Sequence[int], out: Tensor
) -> int:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    dim, axis = dim % out.dim(), axes[0]
    if name == "stack":
        return axis + (dim <= axis)
    if name in ("hstack", "vstack"):
        dim = int(name == "hstack")
    return LOST if dim == axis or len(set(axes)) > 1 else axis


def contracted(args: tuple[Any, ...], of: Callable[[Tensor], int | None]) -> int:
    """Return the axis of an einsum; ``LOST`` if datums are summed over or an ellipsis is used."""
    equation, *given = args
    given = list(flatten_arguments(given))
    if not isinstance(equation, str) or "..." in equation or "->" not in equation:
        return LOST
    left, result = equation.replace(" ", "").split("->")
    letters = {
        operand[axis]
        for operand, x in zip(left.split(","), given, strict=True)
        if isinstance(x, Tensor) and not isinstance(x, nn.Parameter)
        if (axis := of(x)) is not None
    }
    return result.find(letters.pop()) if len(letters) == 1 else LOST


def multiplied(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    of: Callable[[Tensor], int | None],
) -> int:
    """Return the axis of a matrix product; ``LOST`` if it sums over datums."""
    if name == "addmm":
        args = args[1:]
    left, right = (*args, *kwargs.values())[:2]
    if name == "__rmatmul__":
        left, right = right, left
    axis, other = of(left), of(right)
    if axis is not None:
        mixes = axis == left.dim() - 1
        if not mixes and other is not None and name not in ("linear", "addmm"):
            mixes = right.dim() < 3 or other != axis or left.dim() != right.dim()
        return LOST if mixes else axis
    inner = right.dim() - 2 if name != "linear" else right.dim() - 1
    return LOST if other is None or other >= inner else other


def permuted(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], axis: int
) -> int:
    """Return where a function that moves axes has put one."""
    dummy = torch.empty(PRIMES[: args[0].dim()], device="meta")
    shape = func(dummy, *args[1:], **kwargs).shape
    return list(shape).index(PRIMES[axis])


def reshaped(before: Sequence[int], after: Sequence[int], axis: int, num_rows: int) -> int:
    """Return where an axis is after a reshape; ``LOST`` if others are now around it."""
    outer = math.prod(before[:axis])
    for new in range(len(after)):
        if math.prod(after[:new]) == outer and after[new] and not after[new] % before[axis]:
            return new
    fits = axis == 0 and len(after) > 0 and after[0] and not after[0] % num_rows
    return 0 if fits else LOST


def along(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], axis: int, out: Tensor) -> int:
    """Return the axis after a function along some axes; ``LOST`` if it is one of them."""
    place, default = ALONG[name]
    dims = kwargs.get("dim", kwargs.get("dims", args[place] if len(args) > place else default))
    rank = args[0].dim()
    if isinstance(dims, Tensor):  # the larger of two tensors
        return axis
    if dims is None:
        return LOST
    found = {int(dim) % rank for dim in (dims if isinstance(dims, tuple | list) else (dims,))}
    if axis in found:
        return LOST
    return axis - sum(dim < axis for dim in found) if out.dim() < rank else axis


def elementwise(known: Sequence[Tensor], axes: Sequence[int], out: Tensor) -> int:
    """Return the axis where tensors of several shapes meet, and for any other function."""
    if len(known) < 2:
        x, axis = known[0], axes[0]
        if x.dim() and out.dim() >= x.dim() and out.shape[axis] == x.shape[axis]:
            return axis
        broadcast = axis + out.dim() - x.dim()
        fits = 0 <= broadcast < out.dim() and out.shape[broadcast] == x.shape[axis]
        return broadcast if fits else LOST
    aligned = {axis + out.dim() - x.dim() for x, axis in zip(known, axes, strict=True)}
    if len(aligned) == 1 and 0 <= (axis := aligned.pop()) < out.dim():
        return axis
    return axes[0] if len(set(axes)) == 1 and axes[0] == 0 and out.dim() > 0 else LOST
