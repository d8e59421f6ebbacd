"""The two factors of every captured gradient.

A parameter's gradient is a sum over positions t of something rank one: for a linear weight δ_t
a_tᵀ, with a the layer's input and δ the loss gradient at its output; for the weight of a LayerNorm
or RMSNorm δ_t ⊙ x̂_t; for an embedding δ_t in the row of token t; for any bias δ_t. Whoever holds
(a, δ) of a batch holds the gradient of every datum in it; ``capture.gradients.tape`` collects them.

Shapes: N datum, T position (all inner axes flattened), I input width, O output width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from capture.errors import ConfigError, UnitError

Kind = Literal["outer", "scale", "sum", "rows"]
MAX_ENTRIES = 2**31 - 1
"""What the record's 32-bit index can count."""


@dataclass(frozen=True)
class Factor:
    """How one use of a parameter makes its gradient.

    outer: Σ_t δ_t a_tᵀ; scale: Σ_t δ_t ⊙ a_t; sum: Σ_t δ_t; rows: row token_t receives δ_t. A
    gradient that is no such sum is a "sum" with one position and O entries.
    """

    kind: Kind
    delta_NTO: Tensor
    a_NTI: Tensor | None = None
    """None for "sum" and "rows"; for "scale" I = O, the normalised input."""
    transposed: bool = False
    """An "outer" weight that is stored [I, O]: its gradient is Σ_t a_t δ_tᵀ."""
    token_NT: Tensor | None = None
    """The rows looked up, int64, for "rows"."""

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> "Factor":
        """The same use with all its tensors changed alike."""
        a_NTI = None if self.a_NTI is None else change(self.a_NTI)
        token_NT = None if self.token_NT is None else change(self.token_NT)
        return Factor(self.kind, change(self.delta_NTO), a_NTI, self.transposed, token_NT)

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Of an "outer" use: what spans the rows of the weight, what its columns; both [N, T, ·]"""
        assert self.kind == "outer"
        assert self.a_NTI is not None
        pair = (self.delta_NTO, self.a_NTI)
        return (pair[1], pair[0]) if self.transposed else pair


Factors = dict[str, list[Factor]]
"""Unit name → its uses in the forward pass (one, unless a parameter is used several times)."""


def choose_units(model: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters that match any of the glob patterns, in the model's order.

    Raises ``ConfigError`` for a pattern that matches nothing, ``UnitError`` for a unit with more
    entries than the record can count.
    """
    parameters = dict(model.named_parameters())
    chosen = set()
    for pattern in patterns:
        matches = {name for name in parameters if fnmatchcase(name, pattern)}
        if not matches:
            some = ", ".join(list(parameters)[:4])
            problem = f"{pattern!r} matches no parameter of the model ({some}, …)"
            raise ConfigError("capture.units", problem)
        chosen |= matches
    for name in chosen:
        if (size := parameters[name].numel()) > MAX_ENTRIES:
            problem = f"has {size:,} entries, more than the record can number ({MAX_ENTRIES:,})"
            raise UnitError(name, problem, "Leave it out with capture.units")
    return {name: parameter for name, parameter in parameters.items() if name in chosen}
