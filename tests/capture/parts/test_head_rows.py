"""Each row of the weights of queries, keys and values belongs to the head that alone uses it."""

import numpy as np
import pytest
import torch
from tiny_families import VOCABULARY, WIDTH, WINDOW, Attention, Block, ByHand, tiny_model
from torch import Tensor, nn
from torch.nn import functional as F

from capture.parts import ModelParts, Parted, head_blocks, parted
from capture.parts.found_parts import HeadBlocks, PartSite

H, E = 4, WIDTH // 4


class LastAxisAttention(Attention):
    """Has its heads along the last axis: row r belongs to head r mod 4."""

    def forward(self, x_NTD: Tensor) -> Tensor:
        q, k, v = self.qkv(x_NTD).unflatten(2, (E, 3, H)).permute(3, 0, 4, 1, 2)
        mixed_NHTE = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed_NHTE.transpose(1, 2).flatten(2))


def of_a_stranger() -> nn.Module:
    model = ByHand(layers=2)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.mixer = LastAxisAttention()
    return model


def thirds(rows: int) -> list[int]:
    return [row % WIDTH // E for row in range(rows)]


def interleaved(rows: int) -> list[int]:
    return [row // (3 * E) for row in range(rows)]


def queries_alone(rows: int) -> list[int]:
    """Two heads share a key and a value."""
    return [row // E if row < WIDTH else -1 for row in range(rows)]


WANTED = {
    "gpt2": ("c_attn", thirds),
    "nn.TransformerEncoder": ("in_proj_weight", thirds),
    "nn.TransformerEncoder, position first": ("in_proj_weight", thirds),
    "by hand": ("qkv", thirds),
    "gpt_neox": ("query_key_value", interleaved),
    "bloom": ("query_key_value", interleaved),
    "phi3": ("qkv_proj", queries_alone),
    "of a stranger": ("qkv", lambda rows: [row % H for row in range(rows)]),
}


def parts_of(name: str) -> Parted:
    torch.manual_seed(0)
    model = of_a_stranger() if name == "of a stranger" else tiny_model(name)
    return parted(model, torch.randint(VOCABULARY, (3, WINDOW)))


class NoAttention(nn.Module):
    """A block that computes attention itself; ``up`` is an MLP, ``first`` writes to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.first, self.qkv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x_NTD: Tensor) -> Tensor:
        x_NTD = x_NTD + self.first(x_NTD)
        q, k, v = self.qkv(x_NTD).unflatten(2, (3, H, E)).permute(2, 0, 3, 1, 4)
        mixed_NHTE = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_NTD = x_NTD + self.mix(mixed_NHTE.transpose(1, 2).flatten(2))
        return x_NTD + self.up(F.gelu(x_NTD))


def test_rows_are_found_where_attention_has_no_module() -> None:
    torch.manual_seed(0)
    model = ByHand(layers=2)
    model.blocks = nn.Sequential(NoAttention(), NoAttention())
    given = ModelParts(heads=H, attention_out="mix.weight")
    found = head_blocks(parted(model, torch.randint(VOCABULARY, (3, WINDOW)), given))
    assert list(found) == [f"blocks.{b}.{own}.weight" for b in (0, 1) for own in ("mix", "qkv")]
    for block in (0, 1):
        own = found[f"blocks.{block}.qkv.weight"]
        assert list(own.head) == thirds(3 * WIDTH)
        assert own.name == found[f"blocks.{block}.mix.weight"].name == f"blocks.{block}.mix"


def test_a_single_head_without_a_module_owns_no_rows_of_other_weights() -> None:
    model = ByHand(layers=2)
    model.blocks = nn.Sequential(NoAttention(), NoAttention())
    given = ModelParts(heads=1, attention_out="mix.weight")
    found = head_blocks(parted(model, torch.randint(VOCABULARY, (3, WINDOW)), given))
    assert list(found) == ["blocks.0.mix.weight", "blocks.1.mix.weight"]


def fused(model: Parted, end: str) -> dict[str, HeadBlocks]:
    return {name: own for name, own in head_blocks(model).items() if end in name.split(".")}


@pytest.mark.parametrize("name", WANTED)
def test_rows_of_a_fused_weight_are_found_whatever_their_order(name: str) -> None:
    end, order = WANTED[name]
    model = parts_of(name)
    found = fused(model, end)
    assert len(found) == 2  # a layer each
    for weight, own in found.items():
        assert not own.inputs
        assert list(own.head) == order(model.parts.uses[weight].outputs)


@pytest.mark.parametrize("name", [*WANTED, "falcon", "llama", "gemma2"])
def test_other_heads_do_not_change_with_the_rows_of_a_head(name: str) -> None:
    model, draw = parts_of(name), torch.Generator().manual_seed(1)
    before = outputs_of_heads(model)
    for weight, own in head_blocks(model).items():
        layer = model.parts.uses[weight].layer
        if own.inputs or layer:
            continue
        parameter, use = model.network.get_parameter(weight), model.parts.uses[weight]
        rows = parameter.data.T if use.transposed else parameter.data
        kept = rows.clone()
        for head in range(own.heads):
            mine = torch.tensor([number == head for number in own.head])
            rows[mine] += torch.randn(rows[mine].shape, generator=draw)
            changed = (outputs_of_heads(model) != before).flatten(0, 1).any(0).any(-1)
            assert changed.tolist() == [number == head for number in range(own.heads)]
            rows.copy_(kept)


def outputs_of_heads(model: Parted) -> Tensor:
    """Return what the heads of the first layer put out, [N, T, H, E]."""
    own = model.parts.attention[0]
    assert own is not None
    site = PartSite(model.parts.uses[own.out].layer, own.out, "input")
    return model.observe(model.example_NT, [site]).at[site].unflatten(-1, (own.heads, -1))


def test_a_weight_of_which_no_row_is_known_to_belong_to_a_head_is_left_out() -> None:
    model = parts_of("llama")  # two heads share a key and a value
    assert {name.split(".")[-2] for name in head_blocks(model)} == {"q_proj", "o_proj"}
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.zero_()  # no query depends on a key, as far as one can see
    assert {name.split(".")[-2] for name in head_blocks(model)} == {"o_proj"}


def test_blocks_of_given_heads() -> None:
    model = ByHand()
    for block in model.blocks:
        assert isinstance(block, Block)
        block.mixer.n_head = 2
    tokens = torch.randint(VOCABULARY, (3, WINDOW))
    found = head_blocks(
        parted(model, tokens, ModelParts(heads=2, attention_out="mixer.out.weight"))
    )
    counts = [np.bincount(own.head).tolist() for own in found.values()]
    assert counts == [[8, 8], [24, 24]] * 2
