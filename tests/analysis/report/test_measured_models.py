"""What the report measures of any model, against plain autograd and written-out formulas.

Shapes: N datum, T position, D width, I neuron, O output, V token of the vocabulary.
"""

import numpy as np
import pytest
import torch
from tiny_families import VOCABULARY, WIDTH, WINDOW, tiny_model
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.report.measured.direct_logits import direct_logits, logits_of
from analysis.report.measured.update_norms import position_norms
from capture.parts import Parted, parted

TOKEN_NT = np.random.default_rng(0).integers(VOCABULARY, size=(5, WINDOW)).astype(np.int32)
TARGET_NT = np.random.default_rng(1).integers(VOCABULARY, size=(5, WINDOW)).astype(np.int32)
TOKENS = torch.from_numpy(TOKEN_NT).long()


def of_family(name: str) -> Parted:
    network = tiny_model(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return parted(network.requires_grad_(False), TOKENS)


@pytest.mark.parametrize("name", ["gpt2", "llama", "by hand", "position first, by hand"])
def test_norms_of_positions_are_those_of_plain_autograd(name: str) -> None:
    model = of_family(name)
    units = list(model.parts.mlp)
    found = position_norms(model, TOKEN_NT, TARGET_NT, units)
    outputs: dict[str, Tensor] = {}

    def keep(unit: str) -> object:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            outputs[unit] = out.requires_grad_() if out.is_leaf else out
            outputs[unit].retain_grad()
            return outputs[unit]

        return hook

    hooks = [
        model.network.get_submodule(unit.removesuffix(".weight")).register_forward_hook(keep(unit))  # pyright: ignore
        for unit in units
    ]
    logits = model.network(TOKENS)
    loss = F.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(TARGET_NT).long().flatten(), reduction="sum"
    )
    (loss / WINDOW).backward()
    for hook in hooks:
        hook.remove()
    for unit in units:
        delta = outputs[unit].grad
        assert delta is not None
        turned = name.startswith("position") and delta.shape[0] == WINDOW
        norm_NT = delta.norm(dim=-1).T if turned else delta.norm(dim=-1).view(TOKEN_NT.shape)
        np.testing.assert_allclose(found[unit][0], norm_NT, rtol=1e-4, atol=1e-7, err_msg=unit)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "gpt_neox", "cohere"])
def test_direct_logits_are_weights_times_gain_times_unembedding(name: str) -> None:
    model = of_family(name)
    weight, network = model.parts.mlp_out[0], model.network
    assert weight is not None
    neuron_I = np.array([3, 0])
    own = network.get_parameter(weight)
    direction_ID = (own if name == "gpt2" else own.T)[torch.from_numpy(neuron_I)]
    assert model.parts.final_norm is not None
    norm = network.get_submodule(model.parts.final_norm)
    weight_D = norm.get_parameter("weight")
    gain_D = weight_D + 1 if name == "gemma" else weight_D
    if name in ("gpt2", "gpt_neox", "cohere"):  # they subtract the mean
        direction_ID = direction_ID - direction_ID.mean(1, keepdim=True)
    logit_IV = (direction_ID * gain_D) @ model.unembedding[0].T
    if name == "cohere":
        logit_IV = logit_IV / 16
    wanted_IV = logit_IV - logit_IV.mean(1, keepdim=True)
    found_IV = logits_of(model, weight, neuron_I)
    assert found_IV is not None
    torch.testing.assert_close(found_IV, wanted_IV, rtol=1e-3, atol=1e-4)
    table = direct_logits(model, [(weight, 3)], 2)
    assert table["token_id"].iloc[0] == int(wanted_IV[0].argmax())


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "nn.TransformerEncoder"])
def test_a_norm_behind_the_mlp_leaves_no_direct_path(name: str) -> None:
    model = of_family(name)
    weight = model.parts.mlp_out[0]
    assert weight is not None
    assert logits_of(model, weight, np.array([0])) is None
    assert direct_logits(model, [(weight, 0)], 2).empty


def test_inputs_of_an_mlp_have_no_direct_path() -> None:
    model = of_family("llama")
    assert model.parts.uses["model.layers.0.mlp.up_proj.weight"].inputs == WIDTH
    assert logits_of(model, "model.layers.0.mlp.up_proj.weight", np.array([0])) is None
