"""The two weights behind a model's bigram logits: the embedding and the unembedding.

Shapes: V token of the vocabulary, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from capture.errors import UnitError
from capture.models.huggingface import HFModel
from capture.models.transformer import LanguageModel

UNSCALED_FAMILIES = (
    *("falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "llama", "mistral"),
    *("mixtral", "olmo", "olmo2", "phi", "phi3", "qwen2", "qwen3", "stablelm"),
)
"""Hugging Face families that scale neither embeddings nor logits."""


@dataclass(frozen=True)
class EmbeddingNames:
    """Names of a model's embedding and unembedding, and the scale of its embeddings."""

    embedding: str
    """Name of the embedding weight, [V, D]."""
    unembedding: str
    """Name of the unembedding weight, [V, D]; the same name if the two are tied."""
    factor: float
    """Factor by which the model multiplies embeddings."""

    @property
    def units(self) -> list[str]:
        return sorted({self.embedding, self.unembedding})


@dataclass(frozen=True, eq=False)
class EmbeddingPair:
    """Values of embedding and unembedding at one step. Row v of either belongs to token v."""

    embedding_VD: Tensor
    unembedding_VD: Tensor
    factor: float

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], layers: EmbeddingNames) -> "EmbeddingPair":
        return cls(weights[layers.embedding], weights[layers.unembedding], layers.factor)


def find_embeddings(model: nn.Module) -> EmbeddingNames:
    """Find the embedding and the unembedding of a model.

    Raises ``UnitError`` if the model has none of the same shape, or if its Hugging Face family may
    scale them.
    """
    if isinstance(model, LanguageModel):
        ends = [model.encoder, model.decoder]
        factor = model.embedding_factor
    else:
        named = ("get_input_embeddings", "get_output_embeddings")
        ends = [getattr(model, name, lambda: None)() for name in named]
        factor = 1.0
    if (
        isinstance(model, HFModel)
        and (family := model.whole.config.model_type) not in UNSCALED_FAMILIES
    ):
        problem = "may scale embeddings or logits, so its bigram logits are unknown"
        raise UnitError(family, problem, f"Supported families: {', '.join(UNSCALED_FAMILIES)}")
    weights = [getattr(end, "weight", None) for end in ends]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [weight for weight in weights if isinstance(weight, Tensor) and id(weight) in names]
    if len(found) < 2 or found[0].shape != found[1].shape:
        problem = "has no embedding and unembedding of the same shape, which bigram logits need"
        raise UnitError(type(model).__name__, problem)
    return EmbeddingNames(names[id(found[0])], names[id(found[1])], factor)
