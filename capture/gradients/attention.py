"""Attention of ``torch.nn.MultiheadAttention``, whose one function holds several linear layers.

``F.multi_head_attention_forward`` is one call for a torch function mode. ``run_visibly`` runs its
own code with the mode on, so that the calls inside are seen. Within it, positions come first:
activations are [L, N, E], or [L · N, E] before the output projection.

Shapes: N datum, L position, E features.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import FunctionType
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ATTENTION = F.multi_head_attention_forward


def is_hidden(values: object) -> bool:
    """Say that no function mode is on, in place of ``has_torch_function``."""
    return False


@cache
def visible_attention() -> Callable[..., Any]:
    """Return the same code, which does not hand itself over to the mode as one call."""
    own = ATTENTION.__globals__ | {"has_torch_function": is_hidden}
    return FunctionType(
        ATTENTION.__code__, own, ATTENTION.__name__, ATTENTION.__defaults__, ATTENTION.__closure__
    )


def has_datums(query: Tensor, *args: Any, **kwargs: Any) -> bool:
    """Return whether the query of a call has an axis of datums."""
    return query.dim() == 3


def num_datums_of(query: Tensor, *args: Any, **kwargs: Any) -> int:
    """Return the number of datums of a call."""
    return query.shape[1]


def run_visibly(mode: TorchFunctionMode, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an attention so that the mode sees every call inside; the results are the same bits."""
    with mode:
        return visible_attention()(*args, **kwargs)


def datums_first(x: Tensor, num_datums: int) -> Tensor:
    """Return [L, N, E] or [L · N, E] as [N, L, E]."""
    x_LNE = x if x.dim() == 3 else x.unflatten(0, (-1, num_datums))
    return x_LNE.transpose(0, 1)
