"""Where each captured unit lies in the flat vector of all captured parameters."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each unit lies among the P captured parameters."""

    shapes: dict[str, tuple[int, ...]]
    transposed: frozenset[str] = frozenset()
    """The weights that are stored [I, O]."""

    @classmethod
    def of(cls, units: Mapping[str, Tensor], transposed: Iterable[str] = ()) -> "Layout":
        shapes = {name: tuple(parameter.shape) for name, parameter in units.items()}
        return cls(shapes, frozenset(transposed) & shapes.keys())

    def fan_in(self, name: str) -> int:
        """Inputs of a unit with two axes."""
        return self.shapes[name][0 if name in self.transposed else 1]

    @property
    def names(self) -> list[str]:
        return list(self.shapes)

    @cached_property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes.values()]

    @cached_property
    def offsets(self) -> list[int]:
        """First column of each unit, and P at the end."""
        return [0, *itertools.accumulate(self.sizes)]

    @property
    def size(self) -> int:
        return self.offsets[-1]

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A copy of one tensor a unit, as [P]."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.shapes])
