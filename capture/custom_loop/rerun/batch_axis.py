"""Find the batch in the tensors of a module's call, and the rows of one datum.

The first axis is the batch, or batch and positions flattened. torch's recurrent modules and its
attention may have it second. A tensor whose first axis is no multiple of the datums is shared by
all of them (a mask, rotary positions).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

ATTENDED = ("0", "1", "2", "query", "key", "value")


def leaves_of(value: Any) -> list[tuple[str, Any]]:
    """Return what is nested in arguments or outputs, each with its place, such as ``1.0``."""
    found, _ = tree_flatten_with_path(value)
    return [(".".join(map(name_of, path)), leaf) for path, leaf in found]


def name_of(key: Any) -> str:
    return str(next(getattr(key, name) for name in ("idx", "key", "name") if hasattr(key, name)))


def batch_axis(module: nn.Module, place: str, *, is_input: bool) -> int:
    """Return the axis of the batch in a tensor at a place of a module's arguments or outputs."""
    first = 0 if getattr(module, "batch_first", True) else 1
    top = place.partition(".")[0]
    if isinstance(module, nn.RNNBase):
        of_states = top not in ("0", "input")
        return 1 if of_states else first
    if isinstance(module, nn.MultiheadAttention):
        return first if (top in ATTENDED if is_input else top == "0") else 0
    return 0


def rows_of_datum(x: Tensor, axis: int, slot: int, num_datums: int) -> Tensor | None:
    """Return the rows of the datum in a slot; None if all datums share the tensor."""
    if x.dim() <= axis or x.shape[axis] == 0 or x.shape[axis] % num_datums:
        return None
    length = x.shape[axis] // num_datums
    return x.narrow(axis, slot * length, length)


def have_rows(
    module: nn.Module, leaves: Sequence[tuple[str, Any]], num_datums: int, *, is_input: bool
) -> bool:
    """Return whether every tensor with a gradient has rows of each datum, and there is one."""
    tensors = [(place, x) for place, x in leaves if isinstance(x, Tensor) and x.requires_grad]
    return bool(tensors) and all(
        rows_of_datum(x, batch_axis(module, place, is_input=is_input), 0, num_datums) is not None
        for place, x in tensors
        if not isinstance(x, nn.Parameter)
    )
