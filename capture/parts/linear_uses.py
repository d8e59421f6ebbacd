"""See, and change, what enters and leaves each weight of a model in a forward pass.

A function mode sees every linear map that uses a parameter, also in code without modules and within
``nn.MultiheadAttention``. Weights are told apart by identity, so a weight tied to the embedding is
seen where it gives logits.

Shapes: N datum, T position, I inputs, O outputs of a weight.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from capture.gradients.attention import ATTENTION, run_visibly

MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
Around = Callable[[str, Tensor, Callable[[Tensor], Tensor]], Tensor]
"""Called with a weight's name, its input and the linear map; returns what the map's caller gets."""
Looked = Callable[[str, Tensor], None]
"""Called with the name of an embedding and the ids that are looked up."""


class LinearUses(TorchFunctionMode):
    """Hands every linear map of a named weight to ``around``, and every embedding to ``looked``."""

    def __init__(
        self, weights: Mapping[str, Tensor], around: Around, looked: Looked | None = None
    ) -> None:
        super().__init__()
        self.names = {id(weight): name for name, weight in weights.items()}
        self.views = {weight.data_ptr(): (name, weight) for name, weight in weights.items()}
        self.around, self.looked = around, looked
        self.in_attention = False
        """Whether the map belongs to ``nn.MultiheadAttention``, where positions come first."""
        self.transposed = False
        """Whether the weight of the map is stored [I, O]."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            return self.attention(args, kwargs)
        if func is F.embedding and self.looked:
            ids, weight = (*args, *kwargs.values())[:2]
            if name := self.names.get(id(weight)):
                self.looked(name, ids)
        found = linear_map(func, args, kwargs)
        name = self.name_of(found[1]) if found else None
        if found is None or name is None:
            return func(*args, **kwargs)
        x, weight, of = found
        self.transposed = func is not F.linear and id(weight) in self.names
        return self.around(name, x, lambda x: func(*of(x)))

    def name_of(self, weight: Any) -> str | None:
        """Return the name of a weight, or of the weight that a tensor is the transpose of."""
        if name := self.names.get(id(weight)):
            return name
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            return None
        name, whole = self.views.get(weight.data_ptr(), (None, weight))
        same = whole.T.shape == weight.shape and whole.T.stride() == weight.stride()
        return name if same else None

    def attention(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self.in_attention = True
        try:
            return run_visibly(self, args, kwargs)
        finally:
            self.in_attention = False


def linear_map(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Callable[[Tensor], tuple[Any, ...]]] | None:
    """Return input, weight, and the arguments as a function of the input; None for other calls."""
    if func is F.linear:
        given = (*args, *(kwargs[key] for key in ("input", "weight", "bias") if key in kwargs))
        return given[0], given[1], lambda x: (x, *given[1:])
    if func is torch.addmm and len(args) == 3 and not kwargs:  # Conv1D: bias + x W
        return args[1], args[2], lambda x: (args[0], x, args[2])
    if func in MATMULS and len(args) == 2:
        return args[0], args[1], lambda x: (x, args[1])
    return None
