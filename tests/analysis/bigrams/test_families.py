"""Bigram logits of Hugging Face models whose families scale neither embeddings nor logits."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.bigrams.layers import (
    UNSCALED_FAMILIES,
    EmbeddingNames,
    EmbeddingPair,
    find_embeddings,
)
from analysis.bigrams.shifts import largest_shifts
from capture.errors import UnitError
from capture.models.huggingface import HFConfig, HFModel, build_hf_model

pytest.importorskip("transformers", reason="needs the extra ontogeny[hf]")

V, D = 11, 8
SETTINGS: dict[str, Any] = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2}
KEYS = {"num_key_value_heads": 2}
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["mistral", "mixtral", "qwen2", "qwen3", "stablelm"], KEYS),
    "gpt_neo": {"attention_types": [[["global"], 1]]},
    "gptj": {"rotary_dim": 4},
}


def made(family: str, seed: int = 0) -> HFModel:
    settings = SETTINGS | MORE.get(family, {})
    return build_hf_model(
        HFConfig(family=family, settings=settings), vocabulary=V, window=4, seed=seed
    )


def seen(model: HFModel) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the first layer and of the unembedding, and logits, for every token on its own."""
    into: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into.append((*args, *kwargs.values())[0][:, 0])

    layers = next(part for part in model.modules() if isinstance(part, nn.ModuleList))
    head = model.get_output_embeddings()
    assert head is not None
    layers[0].register_forward_pre_hook(look, with_kwargs=True)
    head.register_forward_pre_hook(look, with_kwargs=True)
    logit_VV = model(torch.arange(V)[:, None])[:, 0]
    return into[0], into[1], logit_VV


def weights_of(model: HFModel) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", UNSCALED_FAMILIES)
@torch.no_grad()
def test_neither_embeddings_nor_logits_are_scaled(family: str) -> None:
    """Compared as differences between tokens, in which positions and biases cancel."""
    model = made(family)
    layers = find_embeddings(model)
    assert layers.factor == 1
    pair = EmbeddingPair.of(weights_of(model), layers)
    into_VD, out_VD, logit_VV = seen(model)
    embedding_VD, unembedding_VD = pair.embedding_VD, pair.unembedding_VD
    torch.testing.assert_close(into_VD - into_VD[0], embedding_VD - embedding_VD[0])
    wanted_VV = out_VD @ unembedding_VD.T
    torch.testing.assert_close(logit_VV - logit_VV[0], wanted_VV - wanted_VV[0])


@torch.no_grad()
def test_shifts_are_the_finite_differences_of_a_gpt2_without_its_layers() -> None:
    pairs, logits = [], []
    for seed in (0, 1):
        model = made("gpt2", seed)
        model.get_submodule("transformer.wpe").weight.zero_()  # pyright: ignore
        for path in ("transformer.h.0", "transformer.ln_f"):
            for parameter in model.get_submodule(path).parameters():
                parameter.zero_()
        whole = model.whole
        whole.transformer.ln_f = nn.Identity()
        logits.append(whole(input_ids=torch.arange(V)[:, None]).logits[:, 0].T)
        pairs.append(EmbeddingPair.of(weights_of(model), find_embeddings(model)))
    found = largest_shifts(pairs[0], pairs[1], V * V)
    difference_VV = (logits[1] - logits[0]).double()
    assert len(found) == V * V
    at_K = difference_VV[found.next_K, found.token_K]
    torch.testing.assert_close(torch.as_tensor(found.shift_K), at_K, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("family", ["gemma", "granite", "cohere"])
def test_a_family_that_scales_them_raises(family: str) -> None:
    text = f"{family}: may scale embeddings or logits, so its bigram logits are unknown. Supported"
    with pytest.raises(UnitError, match=re.escape(text)):
        find_embeddings(made(family))


def test_a_tied_weight_is_embedding_and_unembedding() -> None:
    tied = "transformer.wte.weight"
    assert find_embeddings(made("gpt2")) == EmbeddingNames(tied, tied, 1.0)
