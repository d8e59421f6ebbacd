"""The two factors of every captured gradient, from one ordinary backward pass.

A parameter's gradient is a sum over positions t of something rank one: for a linear weight δ_t
a_tᵀ, with a the layer's input and δ the loss gradient at its output; for a LayerNorm weight δ_t ⊙
x̂_t; for any bias δ_t. Whoever holds (a, δ) of a batch holds the gradient of every datum in it.

``Tape`` collects them by watching the *use of parameters* instead of modules: while it is active,
every torch function that receives a captured parameter is seen, whatever module called it. A
functional call or a module used twice cannot slip through, and a use that cannot be split per datum
is refused by name.

Shapes: N datum, T position (all inner axes flattened), I input width, O output width.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from capture.errors import ConfigError, UnitError

Kind = Literal["outer", "scale", "sum"]


@dataclass(frozen=True)
class Factor:
    """How one use of a parameter makes its gradient: Σ_t of δ_t a_tᵀ, δ_t ⊙ a_t, or δ_t."""

    kind: Kind
    delta_NTO: Tensor
    a_NTI: Tensor | None
    """None for "sum"; for "scale" I = O, the normalised input."""

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Factor":
        """The same use with both factors changed alike."""
        a_NTI = None if self.a_NTI is None else change(self.a_NTI)
        return Factor(self.kind, change(self.delta_NTO), a_NTI)


Factors = dict[str, list[Factor]]
"""Unit name → its uses in the forward pass (one, unless a parameter is used several times)."""


@dataclass
class Use:
    """One call that consumed captured parameters; δ arrives during the backward pass."""

    roles: dict[str, Kind]
    a: Tensor
    output_shape: torch.Size
    delta: Tensor | None = None

    def keep(self, delta: Tensor) -> None:
        self.delta = delta

    def factor(self, kind: Kind) -> Factor:
        delta = self.a.new_zeros(self.output_shape) if self.delta is None else self.delta
        delta_NTO = delta.reshape(delta.shape[0], -1, delta.shape[-1])
        if kind == "sum":
            return Factor(kind, delta_NTO, None)
        return Factor(kind, delta_NTO, self.a.reshape(self.a.shape[0], -1, self.a.shape[-1]))


class Tape(TorchFunctionMode):
    """Records factors of the given parameters during the forward pass that it surrounds::

        with Tape(units) as tape:
            loss = model(batch)
        loss.backward()
        factors = tape.factors()

    A batch's first axis must be the datum. Raises ``UnitError`` for a use that has no factors.
    """

    def __init__(self, units: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in units.items()}
        self.uses: list[Use] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        names = self.names
        for arg in (*args, *kwargs.values()) if kwargs else args:
            if id(arg) in names and isinstance(out, Tensor) and out.requires_grad:
                self.record(func, names[id(arg)], args, kwargs, out)
                break
        return out

    def record(
        self,
        func: Callable[..., Any],
        captured: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Tensor,
    ) -> None:
        if func is F.linear:
            roles, a = self.linear(*args, **kwargs)
            a = a.to(out.dtype)  # under autocast: as it is multiplied
        elif func is F.layer_norm:
            roles, a = self.layer_norm(*args, **kwargs)
        else:
            raise unsupported(captured, getattr(func, "__name__", str(func)))
        if id(a) in self.names:
            raise unsupported(self.names[id(a)], f"the input of {func.__name__}")
        use = Use(roles, a.detach(), out.shape)
        out.register_hook(use.keep)
        self.uses.append(use)

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> tuple[dict[str, Kind], Tensor]:
        return self.roles((weight, "outer"), (bias, "sum")), x

    def layer_norm(
        self,
        x: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> tuple[dict[str, Kind], Tensor]:
        roles = self.roles((weight, "scale"), (bias, "sum"))
        if len(normalized_shape) != 1:
            raise unsupported(next(iter(roles)), "LayerNorm over more than one axis")
        with torch.no_grad():
            return roles, F.layer_norm(x.float(), normalized_shape, eps=eps)

    def roles(self, *parameters: tuple[Tensor | None, Kind]) -> dict[str, Kind]:
        return {self.names[id(p)]: kind for p, kind in parameters if id(p) in self.names}

    def forget_deltas(self) -> None:
        """Make ready for the backward pass of another loss through the same graph."""
        for use in self.uses:
            use.delta = None

    def factors(self) -> Factors:
        """What was recorded, after the backward pass; raises if a captured unit was never used."""
        found: Factors = {name: [] for name in self.names.values()}
        for use in self.uses:
            for name, kind in use.roles.items():
                found[name].append(use.factor(kind))
        for name, factors in found.items():
            if not factors:
                raise UnitError(name, "is captured but the forward pass never used it")
        return found


def unsupported(unit: str, use: str) -> UnitError:
    return UnitError(
        unit,
        f"is used by {use}, which capture cannot split per datum",
        "Captured parameters may be weights and biases of Linear and LayerNorm; "
        "leave this one out with capture.units",
    )


def choose_units(model: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters that match any of the glob patterns, in the model's order.

    Raises ``ConfigError`` for a pattern that matches nothing.
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
    return {name: parameter for name, parameter in parameters.items() if name in chosen}
