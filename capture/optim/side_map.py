"""A linear map of a matrix by a matrix, with which an optimizer mixes the entries of a gradient."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, eq=False)
class SideMap:
    """A linear map of a matrix G: Q G ("left") or G Q ("right"); Q is symmetric."""

    side: Literal["left", "right"]
    matrix: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        return self.matrix @ gradient if self.side == "left" else gradient @ self.matrix
