"""Configurations and folders of tiny Hugging Face models, made without a download."""

from pathlib import Path
from typing import Any

from tiny import TEXT

from capture.config.reading import make_config
from capture.config.settings import Config
from capture.models.huggingface import HFConfig, HFModel, build_hf_model

SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2},
    "gpt_neox": {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
    "llama": {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
    },
}
LAYERS = {"gpt2": "transformer.h.*", "gpt_neox": "gpt_neox.layers.*", "llama": "model.layers.*"}


def hf_config(folder: Path, hf: dict[str, Any] | str, *overrides: str, name: str = "run") -> Config:
    """Return a run of 14 steps in segments of 8; ``hf``: a family, or the settings ``model.hf``."""
    text = folder / "text.txt"
    text.write_text(TEXT)
    described = {"family": hf, "settings": SETTINGS[hf]} if isinstance(hf, str) else hf
    values = {
        "run": {"uri": str(folder / name)},
        "corpus": {"kind": "text", "path": str(text), "window": 8, "validation_share": 0.05},
        "model": {"kind": "hf", "hf": described},
        "training": {"epochs": 1, "batch": 4, "device": "cpu", "learning_rate": 0.5},
        "capture": {"segment_steps": 8, "outliers": {"k": 30}},
    }
    return make_config(values, overrides)


def save_tokenizer(folder: Path) -> int:
    """Save a byte-level tokenizer of the tiny text in the hub's format; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    made.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    own = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")
    own.save_pretrained(folder)
    return len(own)


def save_model(folder: Path, family: str, *, vocabulary: int, **settings: Any) -> HFModel:
    """Save a tiny model with random weights and a tokenizer in the hub's format."""
    shaped = HFConfig(family=family, settings=SETTINGS[family] | settings)
    model = build_hf_model(shaped, vocabulary=vocabulary, window=8, seed=7)
    model.whole.save_pretrained(folder)
    save_tokenizer(folder)
    return model
