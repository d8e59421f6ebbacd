"""Quantities of any model with known parts, against its own code and plain arithmetic."""

from functools import cache

import numpy as np
import pytest
import torch
from tiny_families import VOCABULARY, WIDTH, WINDOW, tiny_model
from torch import nn

from analysis.activations.quantities import (
    QUANTITIES,
    Quantity,
    measure,
    of_weights,
    ranked_units,
    units_of,
)
from capture.errors import ConfigError
from capture.models.huggingface import HFModel
from capture.models.transformer import ModelConfig, fresh_model
from capture.parts import ModelParts, Parted, parted
from capture.parts.attention_weights import attention_weights

TOKEN_NT = np.random.default_rng(0).integers(VOCABULARY, size=(5, WINDOW)).astype(np.int32)
TOKENS = torch.from_numpy(TOKEN_NT).long()
HEADS = 4


@cache
def of_family(name: str) -> Parted:
    network = tiny_model(name)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return parted(network.requires_grad_(False), TOKENS)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_study_s_transformer_taken_as_any_model_gives_the_same(quantity: Quantity) -> None:
    config = ModelConfig(layers=2, width=12, hidden=10, heads=3)
    model = fresh_model(config, vocabulary=VOCABULARY, window=WINDOW, seed=0).eval()
    same = parted(model.requires_grad_(False), TOKENS)
    assert units_of(same, quantity) == units_of(model, quantity)
    assert ranked_units(same, quantity) == ranked_units(model, quantity)
    units = list(units_of(model, quantity))
    wanted = measure(model, TOKEN_NT, units, quantity)
    found = measure(same, TOKEN_NT, units, quantity)
    for unit in units:
        np.testing.assert_allclose(found[unit], wanted[unit], atol=1e-5, err_msg=unit)


@pytest.mark.parametrize(
    ("name", "endings"),
    [
        ("gpt2", {"mlp.c_proj.weight"}),
        ("llama", {"mlp.down_proj.weight"}),
        ("opt", {"fc2.weight"}),
        ("by hand", {"down.weight"}),
        ("mixtral", {"mlp.gate.weight"}),  # the router alone: there is no last weight of an MLP
    ],
)
def test_neurons_are_ranked_among_those_of_the_last_weights_of_mlps(
    name: str, endings: set[str]
) -> None:
    model = of_family(name)
    ranked = ranked_units(model, "inputs")
    assert len(ranked) == 2
    assert all(unit.endswith(tuple(endings)) for unit in ranked)
    assert set(ranked) <= set(units_of(model, "inputs"))
    for quantity in QUANTITIES[1:]:
        assert ranked_units(model, quantity) == list(units_of(model, quantity))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "qwen3", "gemma2", "olmo2"])
def test_attention_weights_are_those_that_the_library_returns(name: str) -> None:
    model = of_family(name)
    assert isinstance(model.network, HFModel)
    whole = model.network.whole
    wanted = whole(input_ids=TOKENS, use_cache=False, output_attentions=True).attentions
    for found, own in zip(attention_weights(model, TOKENS), wanted, strict=True):
        torch.testing.assert_close(found, own, check_stride=False)


@pytest.mark.parametrize(
    "first", ["nn.TransformerEncoder", "nn.TransformerEncoder, position first"]
)
def test_attention_weights_of_torch_s_encoder_are_those_that_it_returns(first: str) -> None:
    model, wanted = of_family(first), []

    def ask(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    for part in model.network.modules():
        if isinstance(part, nn.MultiheadAttention):
            part.register_forward_pre_hook(ask, with_kwargs=True)
            part.register_forward_hook(lambda _, args, out: wanted.append(out[1]))
    model.network(TOKENS)
    found = attention_weights(model, TOKENS)
    for own, weight in zip(found, wanted[: len(found)], strict=True):
        torch.testing.assert_close(own, weight, check_stride=False)


@pytest.mark.parametrize("name", ["gpt2", "llama", "by hand"])
def test_what_heads_add_sums_to_the_output_of_attention(name: str) -> None:
    model = of_family(name)
    own = model.parts.attention[1]
    assert own is not None
    z_NTC = torch.from_numpy(measure(model, TOKEN_NT, [own.out], "head-entries")[own.out])
    norm_NTH = measure(model, TOKEN_NT, [own.name], "head-norm")[own.name]
    module = model.network.get_submodule(own.out.removesuffix(".weight"))
    bias_D = module(torch.zeros(WIDTH)[None, None])[0, 0]
    for head in range(HEADS):
        alone_NTC = torch.zeros_like(z_NTC)
        size = z_NTC.shape[2] // HEADS
        some = slice(head * size, (head + 1) * size)
        alone_NTC[..., some] = z_NTC[..., some]
        wanted_NT = (module(alone_NTC) - bias_D).norm(dim=2)
        np.testing.assert_allclose(norm_NTH[..., head], wanted_NT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "position first, by hand"])
def test_inputs_and_outputs_of_units_are_those_of_their_modules(name: str) -> None:
    model = of_family(name)
    units = list(units_of(model, "inputs"))
    assert len(units) in (4, 6)
    inputs, outputs = (measure(model, TOKEN_NT, units, which) for which in ("inputs", "outputs"))
    for unit in units:
        module = model.network.get_submodule(unit.removesuffix(".weight"))
        assert inputs[unit].shape[:2] == outputs[unit].shape[:2] == TOKEN_NT.shape
        wanted = module(torch.from_numpy(inputs[unit]))
        np.testing.assert_allclose(outputs[unit], wanted, atol=1e-4)


def test_attention_that_is_not_found_is_refused_in_a_line() -> None:
    class Linearly(nn.Module):
        """Attention without a softmax."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.out = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(2))

        def forward(self, token_NT: torch.Tensor) -> torch.Tensor:
            x_NTD = self.embedding(token_NT)
            for layer in self.layers:
                x_NTD = x_NTD + layer(x_NTD).cumsum(1)
            return self.out(x_NTD)

    parts = ModelParts(heads=2, attention_out="0.weight")
    model = parted(Linearly(), TOKENS, parts)
    with pytest.raises(
        ConfigError, match="Linearly: the attention weights of layer 0 are not found"
    ):
        measure(model, TOKEN_NT, ["layers.0.0"], "attention-entropy")


def test_statistics_of_uniform_attention_are_known() -> None:
    uniform = torch.tril(torch.ones(3, 3)) / torch.arange(1, 4)[:, None]
    entropy_NHT = of_weights("attention-entropy", uniform[None, None])
    torch.testing.assert_close(entropy_NHT[0, 0], torch.tensor([1.0, 2.0, 3.0]).log())
