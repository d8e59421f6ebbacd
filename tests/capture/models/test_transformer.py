"""The model equals torch's transformer, and its dropout can be split among workers."""

import math
from dataclasses import replace

import pytest
import torch
from reference import TINY, VOCABULARY, WINDOW, random_batch, tiny_masks, tiny_model
from torch import nn

from capture.errors import ConfigError
from capture.models.dropout import Masks, draw_masks
from capture.models.positions import sinusoids
from capture.models.transformer import (
    LanguageModel,
    ModelConfig,
    dropout_entries,
    fresh_model,
)


def torch_encoder(config: ModelConfig) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        config.width, config.heads, config.hidden, config.dropout, batch_first=True
    )
    return nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)


def test_the_study_s_model_has_exactly_its_number_of_parameters():
    with torch.device("meta"):
        model = LanguageModel(ModelConfig(), vocabulary=28_782, window=35)
    assert sum(p.numel() for p in model.parameters()) == 12_267_582
    body = [p for name, p in model.named_parameters() if name.startswith("layers.")]
    assert sum(p.numel() for p in body) == 726_000
    assert sum(p.numel() for p in body if p.ndim == 2) == 720_000


def test_body_parameters_are_named_and_shaped_as_in_torch():
    ours = {name: p.shape for name, p in tiny_model().named_parameters()}
    theirs = {name: p.shape for name, p in torch_encoder(TINY).named_parameters()}
    assert {name: shape for name, shape in ours.items() if name.startswith("layers.")} == theirs
    assert set(ours) - set(theirs) == {"encoder.weight", "decoder.weight", "decoder.bias"}


def test_same_weights_give_the_output_of_torch_s_encoder():
    model, encoder = tiny_model(), torch_encoder(TINY).eval()
    encoder.load_state_dict(model.state_dict(), strict=False)
    token_NT, _ = random_batch(5)
    x_NTD = model.encoder(token_NT) * math.sqrt(TINY.width) + model.positions_TD
    causal = nn.Transformer.generate_square_subsequent_mask(WINDOW)
    wanted = encoder(x_NTD, mask=causal, is_causal=True)
    torch.testing.assert_close(model.hidden(token_NT, Masks.none()), wanted)


def test_a_position_sees_no_later_token():
    model = tiny_model()
    token_NT, _ = random_batch(1)
    changed = token_NT.clone()
    changed[0, 4:] = (changed[0, 4:] + 1) % VOCABULARY
    before, after = model(token_NT), model(changed)
    torch.testing.assert_close(before[0, :4], after[0, :4])
    assert not torch.allclose(before[0, 4:], after[0, 4:])


def test_positions_are_sine_and_cosine_or_only_sine_as_in_the_study():
    for t, d in [(0, 0), (3, 4), (6, 10)]:
        angle = t / 10000 ** (d / TINY.width)
        both = sinusoids("sine_cosine", window=WINDOW, width=TINY.width)
        sines = sinusoids("all_sine", window=WINDOW, width=TINY.width)
        assert both[t, d].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert both[t, d + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert sines[t, d + 1].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_learned_positions_are_weights_beside_an_embedding_without_a_factor():
    config = replace(TINY, positions="learned")
    model = fresh_model(config, vocabulary=VOCABULARY, window=WINDOW, seed=0)
    assert model.positions.weight.shape == (WINDOW, TINY.width)
    assert model.positions.weight.abs().max() <= TINY.init_range
    token_NT, _ = random_batch(2)
    token_NT = token_NT[:, :3]
    wanted = model.encoder.weight[token_NT] + model.positions.weight[:3]
    torch.testing.assert_close(model.embed(token_NT), wanted)
    assert "positions.weight" not in dict(tiny_model().named_parameters())


def test_learned_positions_leave_the_other_initial_weights_alone():
    config = replace(TINY, positions="learned")
    learned = fresh_model(config, vocabulary=VOCABULARY, window=WINDOW, seed=0).state_dict()
    for name, own in tiny_model().state_dict().items():
        assert torch.equal(learned[name], own), name


def test_normal_initial_weights_have_one_scale_and_no_biases():
    config = ModelConfig(layers=1, width=64, hidden=128, init="normal", positions="learned")
    model = fresh_model(config, vocabulary=100, window=30, seed=0)
    for name, own in model.named_parameters():
        if "norm" in name:
            continue
        wanted = 0 if own.ndim == 1 else 0.1 if name == "decoder.weight" else 1 / 8
        assert own.square().mean().sqrt().item() == pytest.approx(wanted, rel=0.05), name
    again = fresh_model(config, vocabulary=100, window=30, seed=0)
    assert torch.equal(model.positions.weight, again.positions.weight)


def test_attention_without_biases_is_attention_whose_biases_are_zero():
    config = replace(TINY, attention_bias=False)
    model, plain = fresh_model(config, vocabulary=VOCABULARY, window=WINDOW, seed=0), tiny_model()
    names = set(dict(plain.named_parameters())) - set(dict(model.named_parameters()))
    assert {name.rpartition(".")[2] for name in names} == {"in_proj_bias", "bias"}
    assert len(names) == 2 * TINY.layers
    zeros = {name: torch.zeros_like(p) for name, p in plain.named_parameters() if name in names}
    plain.load_state_dict(model.state_dict() | zeros)
    token_NT, _ = random_batch(2)
    torch.testing.assert_close(model(token_NT), plain(token_NT))


def test_initial_weights_depend_on_the_seed_and_lie_in_their_ranges():
    model, same, other = tiny_model(), tiny_model(), tiny_model(seed=1)
    for (name, p), q in zip(model.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not torch.equal(model.encoder.weight, other.encoder.weight)
    assert model.encoder.weight.abs().max() <= 0.1
    assert model.decoder.weight.abs().max() <= 0.1
    assert not model.decoder.bias.any()
    weights = dict(model.named_parameters())
    first, second = (weights[f"layers.{i}.linear1.weight"] for i in (0, 1))
    assert first.abs().max() <= 1 / math.sqrt(TINY.width)
    assert not torch.equal(first, second)


def test_drawing_leaves_torch_s_global_generator_alone():
    before = torch.random.get_rng_state()
    fresh_model(TINY, vocabulary=9, window=4, seed=3)
    draw_masks(range(2), entries=9, dropout=0.5, seed=0, step=0, device=torch.device("cpu"))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("slots", [range(2, 5), range(7, 8), range(8)])
def test_masks_depend_on_seed_step_and_slot_alone(slots):
    whole = tiny_masks(TINY, range(8), step=3).pool_NK
    part = tiny_masks(TINY, slots, step=3).pool_NK
    assert whole is not None
    assert part is not None
    assert torch.equal(part, whole[slots.start : slots.stop])
    later = tiny_masks(TINY, range(8), step=4).pool_NK
    assert later is not None
    assert not torch.equal(whole, later)


def test_masks_keep_the_expected_share_and_are_scaled_by_its_inverse():
    pool = draw_masks(
        range(4), entries=50_000, dropout=0.2, seed=0, step=0, device=torch.device("cpu")
    ).pool_NK
    assert pool is not None
    assert set(pool.unique().tolist()) == {0.0, 1.25}
    assert (pool > 0).float().mean().item() == pytest.approx(0.8, abs=0.005)
    assert (pool[0] != pool[1]).any()


@pytest.mark.parametrize("window", [WINDOW, 3])
def test_a_forward_pass_uses_every_mask_that_was_drawn(window):
    masks = tiny_masks(TINY, range(3), window=window)
    tiny_model()(random_batch(3)[0][:, :window], masks)
    assert masks.taken == dropout_entries(TINY, window)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"heads": 7}, "model.heads: got 7, must divide model.width = 200."),
        ({"layers": 0}, "model.layers: got 0, must be at least 1."),
        ({"dropout": 1.0}, "model.dropout: got 1.0, must be at least 0 and below 1."),
        ({"width": 7, "heads": 7}, "model.width: got 7, must be even (sine and cosine)."),
        ({"init_range": 0.0}, "model.init_range: got 0.0, must be above 0."),
    ],
)
def test_impossible_models_are_refused(values, text):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**values)
    assert str(caught.value) == text
