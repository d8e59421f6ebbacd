"""A query: a scalar function of the weights that can be differentiated.

A query is a sum of parts, such as the shares of some datums in a mean loss. Parts are evaluated and
differentiated one at a time, so that a query over a whole split needs the memory of one part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from capture.errors import ConfigError, RunError

Weights = Mapping[str, Tensor]
"""Parameter name → tensor; any floating-point type, any device."""
Part = Callable[[Weights], Tensor]
"""A term of a query: weights in, scalar tensor out."""
Better = Literal["higher", "lower"]
INDEPENDENT = "does not depend on the weights"


@dataclass(frozen=True, eq=False)
class Query:
    """A scalar function of the weights: the sum of its parts."""

    name: str
    """Short and unique among the queries of one question."""
    description: Mapping[str, Any]
    """The specification as plain JSON, from which the query can be built again."""
    parts: Sequence[Part]
    better: Better | None = None
    """Which values a user prefers: a log-probability is better if higher, a loss if lower."""

    def __call__(self, weights: Weights) -> Tensor:
        """Return the value as a scalar tensor, differentiable in the weights."""
        return torch.stack([part(weights) for part in self.parts]).sum()

    @torch.no_grad()
    def value(self, weights: Weights) -> float:
        """Return the value; raise ``RunError`` if it is not finite."""
        return self.finite(sum(float(part(weights)) for part in self.parts))

    def gradient(self, weights: Weights) -> tuple[float, dict[str, Tensor]]:
        """Return the value, and its derivative with respect to each weight.

        A parameter that the query does not use has a gradient of 0. Raises ``ConfigError`` if it
        uses none of them, and ``RunError`` if the value is not finite.
        """
        leaves = {name: own.detach().requires_grad_() for name, own in weights.items()}
        sums = {name: torch.zeros_like(own) for name, own in leaves.items()}
        value, uses_weights = 0.0, False
        for part in self.parts:
            term = part(leaves)
            value += float(term.detach())
            if not term.requires_grad:
                continue
            found = torch.autograd.grad(term, list(leaves.values()), allow_unused=True)
            for total, own in zip(sums.values(), found, strict=True):
                if own is not None:
                    total += own
                    uses_weights = True
        if not uses_weights:
            raise ConfigError(f"query {self.name}", INDEPENDENT, "Ask for what training can change")
        return self.finite(value), sums

    def finite(self, value: float) -> float:
        """Return the value; raise ``RunError`` if it is NaN or infinite."""
        if value - value != 0:
            problem = f"is {value} at these weights, not a finite number"
            raise RunError(f"query {self.name}", problem, "Choose another query or checkpoint")
        return value


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names with #2, #3, … behind those that occurred before."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return found
