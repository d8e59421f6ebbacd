"""Runs and folders of tiny Hugging Face models, made where they are needed."""

from pathlib import Path
from typing import Any

from capture.config import Config, make_config
from tiny import TEXT

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
    """A run of 14 steps in segments of 8; ``hf``: a family, or what stands in model.hf."""
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
