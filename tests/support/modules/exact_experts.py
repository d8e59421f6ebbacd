"""Mixtures of experts, adapters and biases of attention that custom loops record exactly."""

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from custom_loops import V
from exact_families import LLAMA, hugging_face, language_model
from exact_loops import ADAMW, EXACT, kind, train
from loop_session import Session
from torch import Tensor, nn

OF_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
SHAPE: dict[str, Any] = LLAMA | {"hidden_size": 8, "intermediate_size": 12}


def language_loss(model: nn.Module, token_NT: Tensor) -> Tensor:
    return model(input_ids=token_NT, labels=token_NT).loss


def mixtral(session: Session, experts: str, **more: Any) -> None:
    hf = hugging_face()
    torch.manual_seed(0)
    routed = {"num_local_experts": 3, "num_experts_per_tok": 2}
    config = hf.MixtralConfig(vocab_size=V, **routed, **SHAPE, **more)
    model = hf.MixtralForCausalLM(config)
    model.set_experts_implementation(experts)
    train(session, model, ADAMW(model.parameters(), 0.01), loss=language_loss)


EXACT |= {
    "Mixtral (fused experts, router)": partial(mixtral, experts="grouped_mm"),
    "Mixtral with the experts one by one": partial(mixtral, experts="eager"),
    "Mixtral with batched experts": partial(mixtral, experts="batched_mm"),
    "Qwen2-MoE (a shared expert)": partial(
        language_model,
        config="Qwen2MoeConfig",
        model="Qwen2MoeForCausalLM",
        **SHAPE | OF_EXPERTS,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    ),
    "Qwen3-MoE": partial(
        language_model,
        config="Qwen3MoeConfig",
        model="Qwen3MoeForCausalLM",
        **SHAPE | OF_EXPERTS,
        moe_intermediate_size=8,
        head_dim=4,
    ),
    "OLMoE": partial(
        language_model,
        config="OlmoeConfig",
        model="OlmoeForCausalLM",
        **SHAPE | OF_EXPERTS,
        eos_token_id=0,
        pad_token_id=0,
    ),
    "BLOOM (ALiBi)": partial(
        language_model,
        config="BloomConfig",
        model="BloomForCausalLM",
        hidden_size=8,
        n_layer=2,
        n_head=2,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    ),
}


@kind("DoRA adapters")
def dora(session: Session) -> None:
    hf, peft = hugging_face(), pytest.importorskip("peft")
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=V, **LLAMA))
    modules = ["q_proj", "down_proj"]
    config = peft.LoraConfig(r=2, use_dora=True, target_modules=modules, init_lora_weights=False)
    with warnings.catch_warnings():  # of the libraries about each other
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, config)
    train(session, adapted, ADAMW(adapted.parameters(), 0.01), loss=language_loss)
