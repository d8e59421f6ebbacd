"""Settings of tiny Hugging Face models by family: two layers, four heads, width 16."""

from typing import Any

WIDE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
GROUPED = WIDE | {"num_key_value_heads": 2}
SHORT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16}


def with_heads_of(head_dim: int) -> dict[str, Any]:
    """Return ``GROUPED`` with heads that are not width / heads wide."""
    return GROUPED | {"head_dim": head_dim}


def family_settings(head_dim: int) -> dict[str, dict[str, Any]]:
    """Return family → settings; ``head_dim``: where a family has it apart from width / heads."""
    heads = with_heads_of(head_dim)
    return {
        "gpt2": SHORT,
        "llama": GROUPED,
        "gpt_neox": WIDE,
        "mistral": GROUPED,
        "qwen2": GROUPED,
        "qwen3": heads,
        "gemma": heads,
        "gemma2": heads,
        "gemma3_text": heads,
        "olmo2": GROUPED,
        "phi": WIDE,
        "phi3": GROUPED,
        "gptj": SHORT | {"rotary_dim": 2},
        "gpt_neo": {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 24,
            "attention_types": [[["global", "local"], 1]],
        },
        "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 4},
        "opt": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 24,
            "word_embed_proj_dim": 16,
        },
        "bert": WIDE | {"is_decoder": True},
    }
