"""Models of Hugging Face's transformers, read from folders, files and the hub."""

from pathlib import Path
from typing import Any

from capture.errors import ConfigError, ShardError
from capture.format import checkpoint
from capture.models.huggingface import (
    HFConfig,
    HFModel,
    build_hf_model,
    load_weights,
    resolve_config,
)


def pretrained_model(path: str, revision: str | None = None) -> HFModel:
    """Return the causal language model of a folder or hub id, with its weights, for evaluation.

    ``revision``: branch, tag or commit of a hub id. Raises ``ConfigError`` if it cannot be read.
    """
    config = resolve_config(HFConfig(path=path, revision=revision))
    model = described_model(config)
    load_weights(model, config)
    return model.eval().requires_grad_(False)


def model_with_weights(folder: str, weights: Path) -> HFModel:
    """Return the model that a folder's ``config.json`` describes, with weights of another file.

    ``weights``: a safetensors file. Raises ``ConfigError`` for a folder that cannot be read, and
    ``ShardError`` for weights of another model.
    """
    model = described_model(resolve_config(HFConfig(path=folder)))
    where = str(weights)
    try:
        tensors = checkpoint.decode(weights.read_bytes(), where)
    except OSError as error:
        raise ShardError(where, f"cannot be read ({error.strerror})") from error
    checkpoint.restore(model, tensors, where)
    return model.eval().requires_grad_(False)


def described_model(config: HFConfig) -> HFModel:
    """Return a model of a resolved configuration, with random weights."""
    size: Any = config.settings.get("vocab_size")
    if not isinstance(size, int):
        problem = f"got {config.path!r}, which is not a model of text alone: it has no vocab_size"
        raise ConfigError("model.hf.path", problem, "Give a causal language model")
    return build_hf_model(config, vocabulary=size, window=1, seed=0)


def longest_window(model: HFModel) -> int | None:
    """Return the largest number of tokens that a model takes; None if nothing limits it."""
    found = getattr(model.whole.config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
