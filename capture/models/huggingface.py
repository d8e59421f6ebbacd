"""Causal language models of Hugging Face's transformers, with the interface of ``LanguageModel``.

A model is described by its family and settings. A folder or a hub id is read once, when a run
begins; ``run.yaml`` then holds the description. Replay and analysis build the model from it and
need neither folder nor network. Only code of the library runs, and weights are read from
safetensors only.

Shapes: N datum, T token, V vocabulary.
"""

import difflib
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from capture.errors import ConfigError
from capture.models.dropout import Masks
from capture.models.hub import (
    first_line,
    library_errors,
    load_transformers,
    pretrained_arguments,
    progress_bars,
    quiet_libraries,
    unreadable_error,
)

NOT_SETTINGS = {
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "auto_map"),
    *("id2label", "label2id", "quantization_config", "use_cache", "_name_or_path"),
}
"""Library settings that do not change the model's mathematics; not stored in ``run.yaml``."""
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
KEY = "model.hf"
LAYER_BYTES = 64
"""Lower bound on the size of a layer's weights, for any model."""


@dataclass(frozen=True, kw_only=True)
class HFConfig:
    """Which model of transformers to train; used if model.kind is hf."""

    path: str | None = None
    """Folder or Hugging Face hub id whose weights training starts from; null: random weights."""
    revision: str | None = None
    """Branch, tag or commit of the path, if it is a hub id; null: its default."""
    family: str | None = None
    """The library's model_type, such as gpt2, gpt_neox or llama; null: that of the path."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that family by the library's names, such as n_layer: 2; dropout is always 0."""

    def __post_init__(self) -> None:
        if self.revision is not None and (self.path is None or Path(self.path).is_dir()):
            problem = f"got {self.revision!r}, but model.hf.path is {self.path or 'null'}"
            raise ConfigError("model.hf.revision", problem, "Only ids on the hub have revisions")
        for name, value in self.settings.items():
            if is_dropout(name) and value:
                problem = f"got {value}, must be 0: the library's dropout masks depend on the batch"
                problem += ", and a datum's gradient must be the same in any batch"
                raise ConfigError(f"model.hf.settings.{name}", problem, "Leave it out")


class HFModel(nn.Module):
    """A model of the library that maps token ids to logits; parameters keep the library's names."""

    whole: Any
    """The library's model object."""
    scored: int | None = None
    """Number of positions at the end whose logits count; None: all."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        for name, child in whole.named_children():
            self.add_module(name, child)
        self.__dict__["whole"] = whole  # as a submodule it would prefix every parameter's name
        if dict(self.named_parameters()).keys() != dict(whole.named_parameters()).keys():
            problem = f"{type(whole).__name__} holds parameters outside its modules"
            raise ConfigError("model.hf.family", problem, "Choose another family")

    def forward(self, token_NT: Tensor, masks: Masks | None = None) -> Tensor:
        """Return logits of the scored positions, [N, T, V]; ``masks`` must drop nothing."""
        assert masks is None or masks.pool_NK is None
        logit_NTV = self.whole(input_ids=token_NT, use_cache=False).logits
        return logit_NTV if self.scored is None else logit_NTV[:, -self.scored :]

    def get_input_embeddings(self) -> nn.Module:
        return self.whole.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.whole.get_output_embeddings()

    def train(self, mode: bool = True) -> "HFModel":
        self.whole.train(mode)
        super().train(mode)
        return self


def stored_transposed(model: nn.Module) -> frozenset[str]:
    """Return the weights that are stored [I, O]: those of the library's Conv1D, as in GPT-2."""
    return frozenset(
        f"{name}.weight"
        for name, part in model.named_modules()
        if type(part).__name__ == "Conv1D" and isinstance(getattr(part, "weight", None), Tensor)
    )


def is_dropout(name: str) -> bool:
    """Return whether a library setting is a dropout rate (``resid_pdrop``, ``hidden_dropout``)."""
    return "drop" in name


def resolve_config(config: HFConfig) -> HFConfig:
    """Return the configuration with family and settings filled in from its path, if it has one.

    Given settings override those of the path. Raises ``ConfigError`` if the path cannot be read or
    holds a model of another family.
    """
    if config.path is None:
        return config
    found = read_library_config(config.path, config.revision)
    if config.family not in (None, found.model_type):
        problem = f"got {config.family}, but {config.path} holds a {found.model_type}"
        raise ConfigError("model.hf.family", problem, "Leave it out")
    known = known_settings(found.model_type)
    settings = {
        name: value
        for name, value in found.to_diff_dict().items()
        if name in known and not is_dropout(name)
    }
    if isinstance(embedded := getattr(found, "vocab_size", None), int):
        settings["vocab_size"] = embedded
    settings |= config.settings
    return replace(config, family=found.model_type, settings=settings)


def read_library_config(path: str, revision: str | None = None) -> Any:
    """Return the library's configuration object of a folder or hub id."""
    source = pretrained_arguments(f"{KEY}.path", path, revision)
    try:
        with quiet_libraries():
            return load_transformers(KEY).AutoConfig.from_pretrained(
                **source, trust_remote_code=False
            )
    except library_errors() as error:
        raise unreadable_error(f"{KEY}.path", path, error) from error


def known_settings(family: str) -> set[str]:
    """Return the names of a family's settings; raises ``ConfigError`` for an unknown family."""
    auto = "transformers.models.auto"
    names = import_module(f"{auto}.configuration_auto").CONFIG_MAPPING_NAMES.keys()
    causal = import_module(f"{auto}.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    families = names & causal
    if family not in families:
        near = difflib.get_close_matches(family, sorted(families), n=1)
        problem = f"got {family!r}, must be one of the {len(families)} causal language models"
        problem += " of transformers, such as gpt2, gpt_neox, llama"
        raise ConfigError("model.hf.family", problem, f"Perhaps {near[0]} is meant" if near else "")
    try:
        plain = load_transformers(KEY).AutoConfig.for_model(family)
    except library_errors() as error:
        problem = f"got {family}, whose own defaults the library refuses: {first_line(error)}"
        raise ConfigError("model.hf.family", problem, "Choose another family") from error
    return {*plain.to_dict(), *plain.attribute_map} - NOT_SETTINGS


def library_config(config: HFConfig, vocabulary: int) -> Any:
    """Return the library's configuration object; raises ``ConfigError`` for unknown settings."""
    load_transformers(KEY)
    assert config.family is not None
    known = known_settings(config.family)
    for name in config.settings:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            remedy = f"Perhaps {near[0]} is meant" if near else ""
            problem = f"is not a setting of {config.family}"
            raise ConfigError(f"model.hf.settings.{name}", problem, remedy)
    none = {name: None for name in SPECIAL_TOKENS if name in known}
    given: dict[str, Any] = {"vocab_size": vocabulary} | none | config.settings
    try:
        made = load_transformers(KEY).AutoConfig.for_model(config.family, **given)
    except library_errors() as error:
        raise settings_error(config, error) from error
    for name, value in made.to_dict().items():
        if is_dropout(name) and isinstance(value, int | float):
            setattr(made, name, 0.0)
    return made


def least_vocabulary(config: HFConfig) -> int:
    """Return the smallest number of tokens of which the library builds such a model."""
    padding = config.settings.get("pad_token_id")
    return 1 + padding if isinstance(padding, int) and padding > 0 else 1


def settings_error(config: HFConfig, error: Exception) -> ConfigError:
    """Return the error for settings from which the library cannot build a model."""
    problem = f"do not describe a model of the family {config.family}: {first_line(error)}"
    return ConfigError("model.hf.settings", problem, "See the documentation of transformers")


def build_hf_model(
    config: HFConfig,
    *,
    vocabulary: int,
    window: int,
    seed: int,
    device: Literal["cpu", "meta"] = "cpu",
) -> HFModel:
    """Return a model with random weights of this seed; torch's global generator is unchanged.

    With ``device="meta"`` the weights have names and shapes but no memory. Raises ``ConfigError``
    if the model is too small for the vocabulary or the window.
    """
    made = library_config(config, vocabulary)
    require_capacity(made, vocabulary=vocabulary, window=window)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed)
        try:
            whole = load_transformers(KEY).AutoModelForCausalLM.from_config(
                made, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
            )
        except library_errors() as error:
            raise settings_error(config, error) from error
    return HFModel(whole)


def require_capacity(made: Any, *, vocabulary: int, window: int) -> None:
    """Raise ``ConfigError`` if the model has too few token embeddings or positions."""
    embedded = getattr(made, "vocab_size", None)
    if not isinstance(embedded, int):
        problem = f"got {made.model_type}, which is not a model of text alone: it has no vocab_size"
        raise ConfigError("model.hf.family", problem, "Choose the family of its language model")
    if embedded < vocabulary:
        problem = f"embeds {embedded:,} tokens, the corpus has {vocabulary:,}"
        remedy = "Set corpus.tokenizer to the model's tokenizer"
        raise ConfigError("model.hf", problem, remedy)
    longest = getattr(made, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 <= longest < window:  # XLNet's -1 means no limit
        problem = f"got {window}, but the model has {longest} positions"
        raise ConfigError("corpus.window", problem, "Shorten the window")


def weight_bytes(config: HFConfig, *, vocabulary: int, window: int, most: int) -> int:
    """Return the size of the weights without allocating them, or ``most + 1`` if surely larger."""
    # Even on the meta device a model of millions of layers would take minutes to build.
    made = library_config(config, vocabulary)
    layers = getattr(made, "num_hidden_layers", 1)
    if not isinstance(layers, int) or layers * LAYER_BYTES > most:
        return most + 1
    model = build_hf_model(config, vocabulary=vocabulary, window=window, seed=0, device="meta")
    return sum(4 * parameter.numel() for parameter in model.parameters())


def load_weights(model: HFModel, config: HFConfig) -> None:
    """Replace the random weights by those of the configuration's path, if it has one.

    Raises ``ConfigError`` if the path cannot be read or lacks one of the model's weights.
    """
    if config.path is None:
        return
    source = pretrained_arguments(f"{KEY}.path", config.path, config.revision)
    try:
        bars = progress_bars(shown=not source["local_files_only"])
        with torch.random.fork_rng(devices=[]), quiet_libraries(), bars:
            found, report = load_transformers(KEY).AutoModelForCausalLM.from_pretrained(
                **source,
                config=model.whole.config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report lists them, and they are refused below
            )
    except library_errors() as error:
        raise unreadable_error(f"{KEY}.path", config.path, error) from error
    if absent := sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}):
        problem = f"{config.path} has no {absent[0]} of the right shape"
        problem += f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise ConfigError("model.hf.path", problem, "Leave out settings that change its shape")
    model.whole.load_state_dict(found.state_dict())


def layers_pattern(model: HFModel) -> str:
    """Return a glob pattern for the parameters of the model's layers, without (un)embeddings.

    The layers are the largest outermost ``ModuleList``; raises ``ConfigError`` if there is none.
    """
    stacks = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    outer = [name for name in stacks if not any(name.startswith(f"{s}.") for s in stacks)]
    if not outer:
        problem = "has no stack of layers to capture"
        raise ConfigError("model.hf.family", problem, "Name the parameters in capture.units")
    sizes = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in outer}
    return f"{max(sizes, key=lambda name: sizes[name])}.*"
