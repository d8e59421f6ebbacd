"""The study's language model: a small post-norm transformer, with the parameter names of torch.

Variants leave out LayerNorm (``model.norm=none``) or the MLPs (``model.hidden=0``), as in studies
of modular addition and of induction heads.

The parameters ``layers.*`` have the names and shapes of ``torch.nn.TransformerEncoder``, so that
weights can be copied both ways. The mathematics is the same. The implementation differs in two
points: attention is written out, because dropout inside fused attention cannot be split among
workers, and dropout takes its masks from the caller.

Source: Vaswani et al. 2017 (post-norm encoder, here with a causal mask); the study's settings.
Shapes: N datum, T token, S source token, D width, H head, E width of a head, V vocabulary.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.errors import ConfigError, at_least
from capture.models.dropout import Masks
from capture.models.huggingface import HFConfig, HFModel, build_hf_model
from capture.models.initial_weights import initialise_weights
from capture.models.perceptron import Perceptron, fresh_perceptron
from capture.models.positions import Positions, sinusoids

SIZES = ("layers", "width", "hidden", "heads")
STARTS = ("init", "init_range")
OWN_KEYS = {
    "transformer": (*SIZES, "dropout", "positions", *STARTS, "attention_bias", "norm", "seed"),
    "mlp": ("layers", "hidden", "classes", "seed"),
    "hf": ("seed",),
}
"""Keys that have an effect, by kind of model."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The study's transformer (its values are the defaults), a perceptron for images, or a Hugging
    Face model."""

    kind: Literal["transformer", "mlp", "hf"] = "transformer"
    """transformer: the study's, described by the keys below; mlp: a perceptron that classifies
    images, of layers, hidden and classes; hf: a Hugging Face model (hf)."""
    hf: HFConfig = field(default_factory=HFConfig)
    layers: int = 3
    """Number of transformer layers, or of hidden layers of the perceptron."""
    width: int = 200
    """Width of the residual stream (embedding dimension)."""
    hidden: int = 200
    """Width of the hidden layer of each MLP; 0 leaves the MLPs out of the transformer."""
    heads: int = 4
    """Attention heads per layer; must divide width."""
    dropout: float = 0.2
    """Probability that dropout zeroes an entry, at least 0 and below 1."""
    positions: Positions = "sine_cosine"
    """Positional encoding. sine_cosine: sinusoids, added to the embedding times sqrt(width);
    all_sine: the study's code, with sine in the odd columns too; learned: a trained vector for each
    position, added to the embedding itself, as in GPT-2 and in studies of modular addition."""
    init: Literal["torch", "normal"] = "torch"
    """torch: layers start as torch's do, and the rest by ``init_range``; normal: every weight is
    drawn with standard deviation 1/sqrt(width) (the unembedding: 1/sqrt(vocabulary)), biases are
    0, as in Nanda et al. 2023."""
    init_range: float = 0.1
    """Embedding, unembedding and learned positions start uniform in [-init_range, init_range]."""
    attention_bias: bool = True
    """Whether the projections of attention have biases."""
    norm: Literal["post", "none"] = "post"
    """post: a LayerNorm after each residual connection; none: no LayerNorm."""
    classes: int = 10
    """Number of classes of the perceptron."""
    seed: int | None = None
    """Seed of the initial weights; null: run.seed."""

    def __post_init__(self) -> None:
        self.require_own_keys()
        at_least("model.seed", self.seed or 0, 0)
        for name in ("layers", "width", "heads", "classes"):
            at_least(f"model.{name}", getattr(self, name), 1)
        at_least("model.hidden", self.hidden, 1 if self.kind == "mlp" else 0)
        if self.width % self.heads:
            problem = f"got {self.heads}, must divide model.width = {self.width}"
            raise ConfigError("model.heads", problem)
        if self.width % 2:
            raise ConfigError("model.width", f"got {self.width}, must be even (sine and cosine)")
        if not 0 <= self.dropout < 1:
            problem = f"got {self.dropout}, must be at least 0 and below 1"
            raise ConfigError("model.dropout", problem)
        if not self.init_range > 0:
            raise ConfigError("model.init_range", f"got {self.init_range}, must be above 0")

    def require_own_keys(self) -> None:
        """Raise ``ConfigError`` for settings of another kind of model, which have no effect."""
        if self.kind == "hf" and self.hf.path is None and self.hf.family is None:
            problem = "got null, must name a family (or model.hf.path a model) for model.kind hf"
            raise ConfigError("model.hf.family", problem, "For example model.hf.family=gpt2")
        if self.kind != "hf" and self.hf != HFConfig():
            problem = f"is set, but model.kind is {self.kind}"
            raise ConfigError("model.hf", problem, "Set model.kind=hf")
        for key in fields(self):
            found = getattr(self, key.name)
            if key.name not in ("kind", "hf", *OWN_KEYS[self.kind]) and found != key.default:
                problem = f"got {found}, but model.kind is {self.kind}"
                remedy = "Leave it out"
                remedy += " and use model.hf.settings" if self.kind == "hf" else ""
                raise ConfigError(f"model.{key.name}", problem, remedy)


class SelfAttention(nn.Module):
    """Causal multi-head self-attention with the parameters of ``torch.nn.MultiheadAttention``."""

    in_proj_bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        bias = nn.Parameter(torch.empty(3 * width)) if config.attention_bias else None
        self.register_parameter("in_proj_bias", bias)
        self.out_proj = nn.Linear(width, width, bias=config.attention_bias)

    def forward(self, x_NTD: Tensor, masks: Masks) -> Tensor:
        """Return the attention output, [N, T, D]."""
        weight_NHTS, v_NHSE = self.weights_and_values(x_NTD)
        mixed_NHTE = masks.drop(weight_NHTS) @ v_NHSE
        return self.out_proj(mixed_NHTE.transpose(1, 2).flatten(2))

    def weights_and_values(self, x_NTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attention weights, [N, H, T, S], and the values that they mix."""
        N, T, D = x_NTD.shape
        qkv = F.linear(x_NTD, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.view(N, T, 3, self.heads, D // self.heads)
        q_NHTE, k_NHSE, v_NHSE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        score_NHTS = q_NHTE @ k_NHSE.transpose(2, 3) / math.sqrt(D // self.heads)
        future_TS = torch.ones(T, T, dtype=torch.bool, device=x_NTD.device).triu(1)
        return score_NHTS.masked_fill(future_TS, -math.inf).softmax(3), v_NHSE


class Layer(nn.Module):
    """Attention, then MLP; each is followed by dropout, a residual connection and a LayerNorm.

    ``norm1`` and ``norm2`` are the identity if the model has no LayerNorm. ``has_mlp`` is False for
    a model of attention alone, whose layers end after ``norm1``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.has_mlp = config.hidden > 0
        if self.has_mlp:
            self.linear1 = nn.Linear(config.width, config.hidden)
            self.linear2 = nn.Linear(config.hidden, config.width)
        self.norm1 = residual_norm(config)
        if self.has_mlp:
            self.norm2 = residual_norm(config)

    def forward(self, x_NTD: Tensor, masks: Masks) -> Tensor:
        x_NTD = self.norm1(x_NTD + masks.drop(self.self_attn(x_NTD, masks)))
        if not self.has_mlp:
            return x_NTD
        hidden = masks.drop(F.relu(self.linear1(x_NTD)))
        return self.norm2(x_NTD + masks.drop(self.linear2(hidden)))


def residual_norm(config: ModelConfig) -> nn.Module:
    """Return what follows a residual connection."""
    return nn.LayerNorm(config.width) if config.norm == "post" else nn.Identity()


class LanguageModel(nn.Module):
    """The study's model; maps token ids to logits over the vocabulary."""

    sinusoid_TD: Tensor

    def __init__(
        self, config: ModelConfig, *, vocabulary: int, window: int, scored: int | None = None
    ) -> None:
        """``scored``: number of positions at the end whose logits count; None: all."""
        super().__init__()
        self.config = config
        self.scored = scored
        self.encoder = nn.Embedding(vocabulary, config.width)
        self.learns_positions = config.positions == "learned"
        if self.learns_positions:
            self.positions = nn.Embedding(window, config.width)
        else:
            made_TD = sinusoids(config.positions, window=window, width=config.width)
            self.register_buffer("sinusoid_TD", made_TD, persistent=False)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.decoder = nn.Linear(config.width, vocabulary)

    @property
    def positions_TD(self) -> Tensor:
        """The positional encoding of a whole window."""
        return self.positions.weight if self.learns_positions else self.sinusoid_TD

    @property
    def embedding_factor(self) -> float:
        """Factor on the embedding: sqrt(width) beside sinusoids, whose entries are of size 1."""
        return 1.0 if self.learns_positions else math.sqrt(self.config.width)

    def embed(self, token_NT: Tensor) -> Tensor:
        """Return the input of the first layer, before dropout, [N, T, D]."""
        T = token_NT.shape[1]
        if self.learns_positions:
            # A lookup, not a slice of the weight: capture splits lookups by datum.
            place_TD = self.positions(torch.arange(T, device=token_NT.device))
        else:
            place_TD = self.sinusoid_TD[:T]
        return self.encoder(token_NT) * self.embedding_factor + place_TD

    def hidden(self, token_NT: Tensor, masks: Masks) -> Tensor:
        """Return the residual stream after the last layer, [N, T, D]."""
        x_NTD = masks.drop(self.embed(token_NT))
        for layer in self.layers:
            x_NTD = layer(x_NTD, masks)
        return x_NTD

    def forward(self, token_NT: Tensor, masks: Masks | None = None) -> Tensor:
        """Return logits of the scored positions, [N, T, V] if all are.

        Without masks nothing is dropped, as in evaluation.
        """
        logit_NTV = self.decoder(self.hidden(token_NT, masks or Masks.none()))
        return logit_NTV if self.scored is None else logit_NTV[:, -self.scored :]


AnyModel = LanguageModel | Perceptron | HFModel


def dropout_entries(config: ModelConfig, window: int) -> int:
    """Return the number of dropout mask entries in one datum's forward pass."""
    # Per layer: attention weights, both residual branches, and the MLP's hidden layer.
    branches = 2 if config.hidden else 1
    widths = branches * config.width + config.hidden
    per_layer = config.heads * window * window + widths * window
    return config.width * window + config.layers * per_layer


def fresh_model(
    config: ModelConfig, *, vocabulary: int, window: int, seed: int, scored: int | None = None
) -> LanguageModel:
    """Return a model with initial weights of this seed; torch's global generator is unchanged."""
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(config, vocabulary=vocabulary, window=window, scored=scored)
    initialise_weights(model, torch.Generator().manual_seed(seed))
    return model


def build_model(
    config: ModelConfig, *, vocabulary: int, window: int, seed: int, scored: int | None = None
) -> AnyModel:
    """Return a model of the configured kind with random weights of this seed.

    ``scored``: number of positions at the end whose logits the model returns; None: all.
    """
    if config.kind == "hf":
        model = build_hf_model(config.hf, vocabulary=vocabulary, window=window, seed=seed)
        model.scored = scored
        return model
    if config.kind == "mlp":
        sizes = {"hidden": config.hidden, "layers": config.layers, "classes": config.classes}
        return fresh_perceptron(pixels=window, levels=vocabulary, seed=seed, **sizes)
    return fresh_model(config, vocabulary=vocabulary, window=window, seed=seed, scored=scored)


def model_label(config: ModelConfig) -> str:
    """Return a noun phrase that begins a sentence, such as "A model of 3 layers"."""
    if config.kind == "hf":
        return f"A {config.hf.family}"
    if config.kind == "mlp":
        return f"A perceptron of {config.layers} hidden layers"
    return f"A model of {config.layers} layers"


def describe_model(config: ModelConfig) -> str:
    """Return the model's kind and size as a phrase."""
    if config.kind == "hf":
        settings = ", ".join(f"{name} {value}" for name, value in config.hf.settings.items())
        origin = config.hf.path or "random weights"
        return f"{config.hf.family} of transformers ({origin}): {settings or 'its defaults'}"
    if config.kind == "mlp":
        hidden = f"{config.layers} hidden layers of {config.hidden}"
        return f"perceptron, {hidden}, {config.classes} classes"
    unnormed = "" if config.norm == "post" else ", no LayerNorm"
    return (
        f"{config.layers} layers, width {config.width}, hidden {config.hidden}, "
        f"{config.heads} heads, dropout {config.dropout:g}{unnormed}"
    )
