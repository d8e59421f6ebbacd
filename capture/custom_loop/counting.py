"""Embeddings of 0, 1, 2, …: of positions, which all datums share, or of datums.

Positions are what a model counts with ``torch.arange`` in its forward pass, and what it computes
from that alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from capture.gradients.torch_functions import NotSplittable, flatten_arguments

AMBIGUOUS = (
    "embedding of 0, 1, 2, …, which may be positions (look them up as [1, T]) or one a datum (as "
    "[N, 1])"
)


class Counting:
    """Results of ``torch.arange`` in the forward pass that is running, and what follows from it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.counted: dict[int, Tensor] = {}
        """Counted tensors by their id, kept alive so that no other tensor gets it."""

    def __contains__(self, x: Tensor) -> bool:
        return id(x) in self.counted

    def clear(self) -> None:
        self.counted.clear()

    def note(self, func: Callable[..., Any], given: Iterable[Any], out: Any) -> None:
        """Note the result of a call if it was computed from positions alone."""
        if func is not torch.arange and not self.counted:
            return
        if func is torch.arange or self.are_counted(given):
            self.counted |= {id(x): x for x in flatten_arguments((out,)) if isinstance(x, Tensor)}

    def are_counted(self, given: Iterable[Any]) -> bool:
        """Return whether tensors are among the arguments of a call, and all come from positions."""
        counted, any_tensor = self.counted, False
        for x in flatten_arguments(given):
            if id(x) in counted:
                any_tensor = any_tensor or bool(x.dim())
            elif isinstance(x, Tensor) and x.dim():
                return False
        return any_tensor

    def are_positions(self, ids: Tensor, inputs: Sequence[Tensor], num_datums: int | None) -> bool:
        """Return whether ids 0, 1, 2, … in one axis are positions, not one for each datum.

        ``inputs``: of the model's forward pass that is running. ``num_datums``: None if unknown.
        Raises ``NotSplittable`` if neither can be decided.
        """
        # They number datums if they are an input of the model. If its first input has more axes,
        # other inputs of one axis may be positions.
        of_datums = inputs if inputs and inputs[0].dim() == 1 else inputs[:1]
        if any(shares_memory(ids, x) for x in of_datums):
            return False
        # Not as many ids as datums: these must be positions. As many: they are positions if the
        # model has counted them itself or holds them in a buffer.
        if num_datums is not None and len(ids) != num_datums:
            return True
        if inputs and any(shares_memory(ids, x) for x in self.model_counters()):
            return True
        raise NotSplittable(AMBIGUOUS)

    def model_counters(self) -> Iterator[Tensor]:
        """Yield the tensors that may hold the model's own positions."""
        yield from self.counted.values()
        yield from self.model.buffers()


def shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
