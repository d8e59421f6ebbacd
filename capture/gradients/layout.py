"""The position of each captured unit in the flat vector of all captured parameters."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Shapes of the captured units, in the order in which they form one vector of P entries."""

    shapes: dict[str, tuple[int, ...]]
    """Unit name → shape as stored."""
    transposed: frozenset[str] = frozenset()
    """Names of the weights that are stored [I, O]."""

    @classmethod
    def of(cls, units: Mapping[str, Tensor], transposed: Iterable[str] = ()) -> "Layout":
        """Return the layout of these parameters, in the mapping's order."""
        shapes = {name: tuple(parameter.shape) for name, parameter in units.items()}
        return cls(shapes, frozenset(transposed) & shapes.keys())

    def fan_in(self, name: str) -> int:
        """Return the number of inputs of a unit with two axes."""
        return self.shapes[name][0 if name in self.transposed else 1]

    @property
    def names(self) -> list[str]:
        return list(self.shapes)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each unit."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @cached_property
    def offsets(self) -> list[int]:
        """First entry of each unit in the flat vector, followed by P."""
        return [0, *itertools.accumulate(self.sizes)]

    @property
    def size(self) -> int:
        """P, the number of captured parameters."""
        return self.offsets[-1]

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return one tensor per unit copied into one vector, [P]."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.shapes])
