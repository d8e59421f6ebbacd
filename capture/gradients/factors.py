"""The two factors of every captured gradient: the layer's input a and its output gradient δ.

A parameter's gradient is a sum over positions t. Each position adds

- δ_t a_tᵀ to a linear weight,
- δ_t ⊙ x̂_t to the weight of a LayerNorm or RMSNorm, with x̂ the normalized input,
- δ_t to row token_t of an embedding,
- δ_t to a bias.

No position belongs to two datums, so (a, δ) of a batch determine the gradient of every datum in it
(Goodfellow 2015, "Efficient per-example gradient computations", for linear layers).
``capture.gradients.tape`` collects the factors.

Shapes: N datum, T entry of a datum (all axes between datum and features, flattened, the window
first), I input width, O output width. An entry is a position, unless axes lie beside the window.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from capture.errors import ConfigError, UnitError

Kind = Literal["outer", "scale", "sum", "rows"]
MAX_ENTRIES = 2**31 - 1
"""Largest number of entries of a unit: the record indexes them with a 32-bit integer."""


@dataclass(frozen=True)
class Factor:
    """The gradient of a parameter through one call that used it.

    The kinds are "outer": Σ_t δ_t a_tᵀ; "scale": Σ_t δ_t ⊙ a_t; "sum": Σ_t δ_t; "rows": row
    token_t receives δ_t. A gradient without such a form is a "sum" with a single position whose O
    entries are all entries of the parameter.
    """

    kind: Kind
    delta_NTO: Tensor
    """Gradient of the batch's loss at the call's output."""
    a_NTI: Tensor | None = None
    """The call's input; for "scale" the normalized input, I = O; None for "sum" and "rows"."""
    transposed: bool = False
    """Whether an "outer" weight is stored [I, O]; its gradient is then Σ_t a_t δ_tᵀ."""
    token_NT: Tensor | None = None
    """Rows looked up, int64; None unless the kind is "rows"."""
    per_position: int = 1
    """Entries of each position of the window, such as heads; entry e is at e // per_position."""

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> "Factor":
        """Return a copy with ``change`` applied to each of its tensors."""
        a_NTI = None if self.a_NTI is None else change(self.a_NTI)
        token_NT = None if self.token_NT is None else change(self.token_NT)
        return replace(self, delta_NTO=change(self.delta_NTO), a_NTI=a_NTI, token_NT=token_NT)

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Left and right vectors of an "outer" factor, [N, T, R] and [N, T, C].

        The gradient of the weight as stored, [R, C], is Σ_t left_t right_tᵀ.
        """
        assert self.kind == "outer"
        assert self.a_NTI is not None
        pair = (self.delta_NTO, self.a_NTI)
        return (pair[1], pair[0]) if self.transposed else pair


Factors = dict[str, list[Factor]]
"""Unit name → one factor per use in the forward pass; a tied or reused weight has several."""


def choose_units(model: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the parameters that match any of the glob patterns, by name, in the model's order.

    Raises ``ConfigError`` for a pattern that matches no parameter and ``UnitError`` for a unit
    with more than ``MAX_ENTRIES`` entries.
    """
    parameters = dict(model.named_parameters())
    chosen = set()
    for pattern in patterns:
        matches = {name for name in parameters if fnmatchcase(name, pattern)}
        if not matches:
            some = ", ".join(list(parameters)[:4])
            problem = f"{pattern!r} matches no parameter of the model ({some}, …)"
            near = difflib.get_close_matches(pattern, parameters, n=1)
            hint = f"Did you mean {near[0]}" if near else ""
            raise ConfigError("capture.units", problem, hint)
        chosen |= matches
    for name in chosen:
        require_size(name, parameters[name])
    return {name: parameter for name, parameter in parameters.items() if name in chosen}


def require_size(name: str, parameter: Tensor) -> None:
    """Raise ``UnitError`` for a unit with more than ``MAX_ENTRIES`` entries."""
    if (size := parameter.numel()) > MAX_ENTRIES:
        problem = f"has {size:,} entries, more than the record can number ({MAX_ENTRIES:,})"
        raise UnitError(name, problem, "Leave it out with capture.units")
