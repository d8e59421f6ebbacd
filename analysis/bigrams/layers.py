"""The two weights that make a model's bigram logits, and their values at one moment.

Shapes: V token of the vocabulary, D width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from capture.errors import UnitError
from capture.models.huggingface import HFModel
from capture.models.transformer import LanguageModel

PLAIN = (
    *("falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "llama", "mistral"),
    *("mixtral", "olmo", "olmo2", "phi", "phi3", "qwen2", "qwen3", "stablelm"),
)
"""The Hugging Face families that multiply neither embeddings nor logits by anything."""


@dataclass(frozen=True)
class Layers:
    """Where a model keeps its embedding and unembedding."""

    embedding: str
    """Name of the parameter, [V, D]."""
    unembedding: str
    """Likewise; the same name where the two are tied."""
    factor: float
    """What the model multiplies embeddings by."""

    @property
    def units(self) -> list[str]:
        return sorted({self.embedding, self.unembedding})


@dataclass(frozen=True, eq=False)
class Pair:
    """Embedding and unembedding at one moment; row v of either belongs to token v."""

    embedding_VD: Tensor
    unembedding_VD: Tensor
    factor: float

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], layers: Layers) -> "Pair":
        return cls(weights[layers.embedding], weights[layers.unembedding], layers.factor)


def find_layers(model: nn.Module) -> Layers:
    """Raises ``UnitError`` for a model that has no embedding and unembedding of one shape, or of
    which it is not known what it multiplies them by."""
    if isinstance(model, LanguageModel):
        ends = [model.encoder, model.decoder]
        factor = math.sqrt(model.config.width)
    else:
        named = ("get_input_embeddings", "get_output_embeddings")
        ends = [getattr(model, name, lambda: None)() for name in named]
        factor = 1.0
    if isinstance(model, HFModel) and (family := model.whole.config.model_type) not in PLAIN:
        problem = "may scale embeddings or logits, so that its bigram logits are not known"
        raise UnitError(family, problem, f"Known are those of {', '.join(PLAIN)}")
    weights = [getattr(end, "weight", None) for end in ends]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [weight for weight in weights if isinstance(weight, Tensor) and id(weight) in names]
    if len(found) < 2 or found[0].shape != found[1].shape:
        problem = "has no embedding and unembedding of the same shape, which bigram logits are of"
        raise UnitError(type(model).__name__, problem)
    return Layers(names[id(found[0])], names[id(found[1])], factor)
