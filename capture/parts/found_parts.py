"""What was found of a model's parts, by name, and how states lie in memory at each weight.

Shapes: N datum, T position, C entry of a state.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

Axes = Literal["datum first", "position first", "flat", "flat, position first"]
"""[N, T, C]; [T, N, C]; [N · T, C]; [T · N, C]."""
End = Literal["input", "output"]


class PartSite(NamedTuple):
    """A state of a model: what enters or leaves a weight."""

    layer: int
    """Layer that holds it, or the number of layers if it lies behind them."""
    weight: str
    end: End


@dataclass(frozen=True)
class Use:
    """How a forward pass uses a weight with two axes, once."""

    weight: str
    layer: int
    """Layer from which a pass can resume before this use: 0, or the number of layers, outside."""
    axes: Axes
    inputs: int
    outputs: int
    transposed: bool
    """Whether the weight is stored [inputs, outputs]."""


@dataclass(frozen=True)
class Attention:
    """The heads of one layer."""

    name: str
    """Attention module; the unit in which heads are numbered."""
    out: str
    """Weight whose inputs are the heads' outputs, side by side."""
    heads: int


@dataclass(frozen=True)
class HeadBlocks:
    """A weight of which each head has some inputs or outputs."""

    name: str
    """Attention module, as in ``Attention``."""
    heads: int
    inputs: bool
    head: tuple[int, ...]
    """Head of each input, or output; -1 for one that no head uses alone."""


@dataclass(frozen=True)
class LogitMap:
    """What a model does to the unembedding's output: scale · x, then cap · tanh(x / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits * self.scale if self.scale != 1 else logits
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()


@dataclass(frozen=True)
class Parts:
    """The parts of a model, by name."""

    layers: tuple[str, ...]
    """Modules, in order; empty without a stack of layers."""
    uses: dict[str, Use]
    """Weight → its use, in order; without the unembedding, and weights used more than once."""
    attention: tuple[Attention | None, ...]
    """By layer; None where no heads were found."""
    mlp: tuple[str, ...]
    """Weights of MLPs, whose inputs are neurons."""
    mlp_out: tuple[str | None, ...]
    """By layer: the weight whose inputs are the hidden neurons of the MLP."""
    unembedding: Use
    logit_map: LogitMap
    embedding: str | None
    final_norm: str | None
    """Module whose output enters the unembedding; None if a layer's output does."""
    layer_axes: Axes = "datum first"
    layer_rest: tuple[Any, ...] | None = None
    """What a layer returns beside its state; None if it returns the state alone."""
    resumable: bool = False
    """Whether a pass can resume at any layer from that layer's input alone."""

    def attention_called(self, name: str) -> Attention:
        """Return the heads whose attention module has this name."""
        return next(own for own in self.attention if own and own.name == name)


def axes_of(x: Tensor, shape: tuple[int, int], *, position_first: bool) -> Axes | None:
    """Return how [N, T, C] lies in a tensor, ``shape`` being (N, T); None if it does not.

    ``position_first`` decides where both orders fit.
    """
    N, T = shape
    if x.dim() == 2 and len(x) == N * T:
        return "flat, position first" if position_first else "flat"
    if x.dim() == 3 and tuple(x.shape[:2]) == (N, T) and not (position_first and N == T):
        return "datum first"
    return "position first" if x.dim() == 3 and tuple(x.shape[:2]) == (T, N) else None


def datum_first(x: Tensor, axes: Axes, num_datums: int) -> Tensor:
    """Return a state as [N, T, C]."""
    if axes == "flat":
        return x.unflatten(0, (num_datums, -1))
    if axes == "flat, position first":
        return x.unflatten(0, (-1, num_datums)).transpose(0, 1)
    return x.transpose(0, 1) if axes == "position first" else x


def laid_out(x_NTC: Tensor, axes: Axes) -> Tensor:
    """Return [N, T, C] as it lies in the model; the inverse of ``datum_first``."""
    x = x_NTC if axes in ("datum first", "flat") else x_NTC.transpose(0, 1)
    return x.flatten(0, 1) if axes.startswith("flat") else x
