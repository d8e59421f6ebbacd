"""One result for all tensors that are the same numbers in the same place."""

from collections.abc import Callable

from torch import Tensor


def tensor_key(tensor: Tensor) -> tuple[object, ...]:
    """The same for two tensors just if they are the same numbers in the same place."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


class Memo:
    """A function of tensors, called once for what is the same; holds what it was given."""

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self.make = make
        self.made: dict[tuple[object, ...], tuple[tuple[Tensor, ...], Tensor]] = {}

    def __call__(self, *given: Tensor) -> Tensor:
        key = tuple(map(tensor_key, given))
        if key not in self.made:
            self.made[key] = given, self.make(*given)
        return self.made[key][1]
