"""Memoize functions of tensors by storage: equal views of the same memory share one result."""

from collections.abc import Callable

from torch import Tensor


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
