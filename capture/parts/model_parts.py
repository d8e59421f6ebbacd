"""What a user says about the parts of a model that are not found by structure."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from capture.errors import ConfigError, at_least

Call = Callable[[nn.Module, Tensor], Any]
"""From a model and token ids, [N, T], to logits, [N, T, V], or an output that has them."""


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """Names of a model's parts. What is left out is found by structure.

    Names are those of ``named_modules`` and ``named_parameters``. Those within a layer have no
    number: ``attn.out.weight`` is ``blocks.0.attn.out.weight`` in the first layer of ``blocks``.

    Example:
        >>> parts = ontogeny.ModelParts(layers="blocks", heads=4, attention_out="attn.out.weight")
        >>> parts.heads
        4
    """

    layers: str | None = None
    """Module that holds the layers in order, a ``ModuleList`` or ``Sequential``."""
    heads: int | None = None
    """Number of attention heads of a layer."""
    attention_out: str | None = None
    """Within a layer: the weight whose inputs are the heads' outputs, side by side."""
    mlp_out: str | None = None
    """Within a layer: the weight whose inputs are the neurons of the MLP."""
    embedding: str | None = None
    """Weight that token ids are looked up in."""
    final_norm: str | None = None
    """Module between the last layer and the unembedding."""
    unembedding: str | None = None
    """Weight that turns states into logits, [V, D]."""
    logits: Call | None = None
    """How to get logits of all positions, [N, T, V], from the model and token ids, [N, T]; by
    default ``model(tokens)``, of which the result, or its ``logits``, is taken."""

    def __post_init__(self) -> None:
        if self.heads is not None:
            at_least("ModelParts.heads", self.heads, 1)
        for name in (key.name for key in fields(self) if key.name not in ("heads", "logits")):
            if not isinstance(found := getattr(self, name), str | None):
                raise ConfigError(f"ModelParts.{name}", f"got {found!r}, must be a name")
        if self.logits is not None and not callable(self.logits):
            problem = f"got {self.logits!r}, must be a function of the model and token ids"
            raise ConfigError("ModelParts.logits", problem)
