"""Memoize functions of tensors by storage: equal views of the same memory share one result."""

from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


def tensor_key(tensor: Tensor) -> tuple[object, ...]:
    """Return a key that two live tensors share exactly if they view the same memory alike."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


class Memo:
    """Calls a function of tensors once per distinct ``tensor_key`` of its arguments.

    The memo holds the arguments too. Otherwise a freed tensor's address could be used again, and
    the key of the new tensor would wrongly match.
    """

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self.make = make
        self.results: dict[tuple[object, ...], tuple[tuple[Tensor, ...], Tensor]] = {}

    def __call__(self, *arguments: Tensor) -> Tensor:
        key = tuple(map(tensor_key, arguments))
        if key not in self.results:
            self.results[key] = arguments, self.make(*arguments)
        return self.results[key][1]


class Roundings:
    """Activations as autocast rounds them: one copy for all calls that read the same one."""

    def __init__(self) -> None:
        self.copies: MutableMapping[Tensor, tuple[int, Tensor]] = WeakTensorKeyDictionary()
        """Activation → its version when it was rounded, and the rounded copy."""

    def clear(self) -> None:
        self.copies.clear()

    def of(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``a`` in the type in which autocast multiplies it.

        All calls that read the same activation share one copy, unless it was changed in place
        between them, which raises torch's version counter.
        """
        if a.dtype == dtype:
            return a
        now = 0 if a.is_inference() else a._version  # inference tensors have no version counter
        version, kept = self.copies.get(a, (None, None))
        if kept is None or (version, kept.dtype) != (now, dtype):
            kept = a.detach().to(dtype)
            self.copies[a] = now, kept
        return kept
