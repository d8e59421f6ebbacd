"""Families of Hugging Face models that custom loops record exactly, by their name in the docs."""

from typing import Any

import pytest
import torch
from custom_loops import V
from exact_loops import ADAMW, kind, train
from exact_models import supervised
from loop_session import Session
from torch import Tensor, nn
from torch.nn import functional as F


def hugging_face() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


def masked_loss(model: nn.Module, token_NT: Tensor) -> Tensor:
    """Return the loss of masked language modelling, with every other token masked."""
    label_NT = torch.full_like(token_NT, -100)
    label_NT[:, 2::2] = token_NT[:, 2::2]
    input_NT = token_NT.clone()
    input_NT[:, 2::2] = 0
    return model(input_ids=input_NT, labels=label_NT).loss


def language_model(session: Session, config: str, model: str, **shape: Any) -> None:
    hf = hugging_face()
    torch.manual_seed(0)
    made = getattr(hf, model)(getattr(hf, config)(vocab_size=V, **shape))

    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        return model(input_ids=token_NT, labels=token_NT).loss

    train(session, made, ADAMW(made.parameters(), 0.01), loss=loss)


LLAMA = {
    **{"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16},
}


@kind("GPT-2 (learned positions, Conv1D, tied weights)")
def gpt2(session: Session) -> None:
    shape = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    language_model(session, "GPT2Config", "GPT2LMHeadModel", **shape, **off)


@kind("Llama (rotary positions, RMSNorm, grouped queries)")
def llama(session: Session) -> None:
    language_model(session, "LlamaConfig", "LlamaForCausalLM", **LLAMA)


@kind("Qwen3 (queries and keys normalized by head)")
def qwen3(session: Session) -> None:
    language_model(session, "Qwen3Config", "Qwen3ForCausalLM", head_dim=4, **LLAMA)


@kind("GPT-NeoX (parallel attention and MLP)")
def gpt_neox(session: Session) -> None:
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 16}
    language_model(session, "GPTNeoXConfig", "GPTNeoXForCausalLM", **shape, **heads)


@kind("OPT (positions from an attention mask)")
def opt(session: Session) -> None:
    shape = {"hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    off = {"max_position_embeddings": 16, "dropout": 0.0, "word_embed_proj_dim": 8}
    language_model(session, "OPTConfig", "OPTForCausalLM", **shape, **off)


@kind("BERT, masked language modelling")
def bert(session: Session) -> None:
    hf = hugging_face()
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = hf.BertConfig(vocab_size=V, num_attention_heads=2, **shape, **off)
    model = hf.BertForMaskedLM(config)

    train(session, model, ADAMW(model.parameters(), 0.01), loss=masked_loss)


def deberta(*, relative: bool) -> nn.Module:
    hf = hugging_face()
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    positions = {"relative_attention": relative, "position_biased_input": not relative}
    positions |= {"pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 16}
    config = hf.DebertaV2Config(vocab_size=V, num_attention_heads=2, **shape, **off, **positions)
    return hf.DebertaV2ForMaskedLM(config)


@kind("DeBERTa-v2 with absolute positions")
def deberta_absolute(session: Session) -> None:
    model = deberta(relative=False)
    train(session, model, ADAMW(model.parameters(), 0.01), loss=masked_loss)


@kind("DeBERTa-v2 with relative positions, their embedding left out by !pattern")
def deberta_relative(session: Session) -> None:
    model = deberta(relative=True)
    units = ["!*rel_embeddings*"]
    train(session, model, ADAMW(model.parameters(), 0.01), loss=masked_loss, units=units)


@kind("T5 (encoder and decoder, relative positions)")
def t5(session: Session) -> None:
    hf = hugging_face()
    torch.manual_seed(0)
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
    config = hf.T5Config(vocab_size=V, dropout_rate=0.0, decoder_start_token_id=0, **shape)
    model = hf.T5ForConditionalGeneration(config)

    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        return model(input_ids=token_NT, labels=token_NT.flip(1)).loss

    train(session, model, ADAMW(model.parameters(), 0.01), loss=loss)


@kind("a vision transformer (ViT)")
def vit(session: Session) -> None:
    hf = hugging_face()
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    image = {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_channels": 2}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    inner = hf.ViTForImageClassification(hf.ViTConfig(num_labels=4, **shape, **image, **off))

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, image_NCHW: Tensor) -> Tensor:
            return self.inner(image_NCHW).logits

    target_N = torch.tensor([0, 1, 2, 3, 0, 1])
    units = ["!*cls_token", "!*position_embeddings"]
    images = torch.randn(6, 2, 8, 8)
    supervised(session, Logits(), images, F.cross_entropy, target_N, units=units)
