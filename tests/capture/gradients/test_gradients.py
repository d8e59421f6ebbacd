"""Laws 1 to 3: factors give each datum's gradient, whatever else is in its batch."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    TINY,
    dense_like,
    each,
    gradients_of,
    gradients_one_by_one,
    random_batch,
    tiny_masks,
    tiny_model,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from capture.engine.engine import Engine
from capture.errors import ConfigError, UnitError
from capture.gradients.dense import slice_datums, sum_shifts, write_shifts
from capture.gradients.factors import Factors, choose_units
from capture.gradients.layout import Layout
from capture.gradients.tape import Tape
from capture.models.dropout import Masks
from capture.models.transformer import LanguageModel
from capture.optim.config import TrainingConfig
from capture.optim.update import relative_error, rounding_error


def factors_of(model: LanguageModel, units: dict, batch: tuple[Tensor, Tensor]) -> Factors:
    token_NT, target_NT = batch
    with Tape(units, len(token_NT)) as tape:
        logits = model(token_NT, tiny_masks(model.config, range(len(token_NT))))
        loss = F.cross_entropy(logits.flatten(0, 1), target_NT.flatten())
    loss.backward()
    return tape.factors()


def dense(factors: Factors, layout: Layout, scale: float = 1.0) -> Tensor:
    """Every datum's gradient of every captured parameter, [N, P]."""
    batch = next(iter(factors.values()))[0].delta_NTO.shape[0]
    parts = [torch.empty(batch, size) for size in layout.sizes]
    for name, part in zip(layout.names, parts, strict=True):
        write_shifts(factors[name], scale, part)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("pattern", ["layers.*", "*.linear1.weight", "*norm*", "*attn*", "*"])
def test_gradients_equal_one_backward_pass_per_datum(pattern):
    model, batch = tiny_model(), random_batch(5)
    units = choose_units(model, [pattern])
    found_NP = dense(factors_of(model, units, batch), Layout.of(units))
    alone = gradients_one_by_one(model, *batch)
    wanted_NP = each(5, lambda i: dense_like([alone[i][name] for name in units]))
    torch.testing.assert_close(found_NP, wanted_NP, rtol=1e-4, atol=1e-7)


def test_gradients_of_learned_positions_equal_one_backward_pass_per_datum():
    model, batch = tiny_model(replace(TINY, positions="learned")), random_batch(5)
    units = choose_units(model, ["positions.weight", "encoder.weight"])
    found_NP = dense(factors_of(model, units, batch), Layout.of(units))
    alone = gradients_one_by_one(model, *batch)
    wanted_NP = each(5, lambda i: dense_like([alone[i][name] for name in units]))
    torch.testing.assert_close(found_NP, wanted_NP, rtol=1e-4, atol=1e-7)


def test_gradients_equal_vmap_of_grad():
    model, (token_NT, target_NT) = tiny_model(), random_batch(5)
    units = choose_units(model, ["*"])
    pool_NK = tiny_masks(TINY, range(5)).pool_NK

    def loss_of(weights, token_T, target_T, pool_K):
        masks = Masks(pool_K[None])
        logits = functional_call(model, weights, (token_T[None], masks))
        return F.cross_entropy(logits[0], target_T, reduction="sum") / target_NT.numel()

    weights = {name: p.detach() for name, p in model.named_parameters()}
    found = vmap(grad(loss_of), in_dims=(None, 0, 0, 0))(weights, token_NT, target_NT, pool_NK)
    wanted_NP = torch.cat([found[name].flatten(1) for name in units], 1)
    found_NP = dense(factors_of(model, units, (token_NT, target_NT)), Layout.of(units))
    torch.testing.assert_close(found_NP, wanted_NP, rtol=1e-4, atol=1e-7)


def test_gradients_sum_to_the_batch_s():
    model, batch = tiny_model(), random_batch(6)
    units = choose_units(model, ["*"])
    layout = Layout.of(units)
    factors = factors_of(model, units, batch)
    wanted_P = layout.flatten({name: p.grad for name, p in units.items() if p.grad is not None})
    assert relative_error(dense(factors, layout).sum(0), wanted_P) < 1e-6
    assert relative_error(sum_shifts(factors, layout, 1.0), wanted_P) < 1e-6


@settings(max_examples=10)
@given(seed=st.integers(0, 99), start=st.integers(0, 4), size=st.integers(1, 3))
def test_a_datum_s_gradient_does_not_depend_on_its_batch_mates(seed, start, size):
    model, (token_NT, target_NT) = tiny_model(), random_batch(8, seed=seed)
    units = choose_units(model, ["layers.*"])
    layout = Layout.of(units)
    whole_NP = dense(factors_of(model, units, (token_NT, target_NT)), layout)
    other_NT = token_NT.clone()
    here = slice(start, start + size)
    others = [slot for slot in range(8) if not start <= slot < start + size]
    other_NT[others] = (other_NT[others] + 1) % 23
    mixed_NP = dense(factors_of(model, units, (other_NT, target_NT)), layout)
    torch.testing.assert_close(whole_NP[here], mixed_NP[here], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(whole_NP[others], mixed_NP[others], rtol=1e-4, atol=1e-7)


def test_slices_of_factors_are_the_slices_of_gradients():
    model = tiny_model()
    units = choose_units(model, ["layers.*"])
    layout = Layout.of(units)
    factors = factors_of(model, units, random_batch(6))
    torch.testing.assert_close(
        dense(slice_datums(factors, 2, 5), layout), dense(factors, layout)[2:5]
    )


class Shared(nn.Module):
    """One linear layer used twice, once as a module and once functionally."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.layer(x)), self.layer.weight, self.layer.bias)


def test_gradients_of_a_module_used_twice_add_up():
    torch.manual_seed(0)
    model, x_NTI = Shared(), torch.randn(3, 5, 4)
    units = dict(model.named_parameters())
    with Tape(units, 3) as tape:
        loss = model(x_NTI).square().mean()
    loss.backward()
    found_NP = dense(tape.factors(), Layout.of(units))
    alone = [gradients_of(model(x[None]).square().sum() / x_NTI.numel(), model) for x in x_NTI]
    wanted_NP = each(3, lambda i: dense_like([alone[i][name] for name in units]))
    torch.testing.assert_close(found_NP, wanted_NP)


@pytest.mark.parametrize("last_only", [False, True])
def test_an_applied_update_of_all_parameters_is_the_sum_of_its_shifts(last_only):
    model, batch = tiny_model(), random_batch(6)
    units = choose_units(model, ["*"])
    layout = Layout.of(units)
    config = TrainingConfig(device="cpu", learning_rate=5.0)
    engine = Engine(model, config, units=units, last_only=last_only, seed=5)
    for number in range(3):
        before_P = layout.flatten(units)
        step = engine.step(*batch, step=number, epoch=number)
        change_P = layout.flatten(units) - before_P
        assert step.learning_rate == pytest.approx(5.0 * 0.95**number)
        shift_NP = dense(step.factors, layout, step.scale)
        allowed = 1e-5 + rounding_error(before_P, before_P + change_P)
        assert relative_error(shift_NP.sum(0), change_P) < allowed


def test_shifts_of_the_last_token_are_those_of_its_loss_alone():
    model, (token_NT, target_NT) = tiny_model(), random_batch(4)
    units = choose_units(model, ["layers.*"])
    layout = Layout.of(units)
    masks = tiny_masks(TINY, range(4))
    logits = model(token_NT, masks)
    losses = F.cross_entropy(logits[:, -1], target_NT[:, -1], reduction="none")
    alone = [gradients_of(loss / target_NT.numel(), model) for loss in losses]
    wanted_NP = each(4, lambda i: dense_like([alone[i][name] for name in units]))
    engine = Engine(model, TrainingConfig(device="cpu"), units=units, last_only=True, seed=5)
    step = engine.step(token_NT, target_NT, step=0, epoch=0)
    assert step.last is not None
    torch.testing.assert_close(dense(step.last.factors, layout), wanted_NP, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(dense(step.factors, layout), wanted_NP, rtol=1e-2)


def test_a_captured_parameter_that_is_never_used_is_named():
    model = tiny_model()
    spare = nn.Parameter(torch.ones(2))
    with Tape({"spare": spare}) as tape:
        model(random_batch(2)[0])
    with pytest.raises(UnitError, match="spare: is captured but the forward pass never used it"):
        tape.factors()


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(ConfigError, match=r"capture\.units: 'layer\.\*' matches no parameter"):
        choose_units(tiny_model(), ["layers.*", "layer.*"])


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one():
    name = next(name for name, _ in tiny_model().named_parameters() if "weight" in name)
    with pytest.raises(ConfigError, match=rf"Did you mean {re.escape(name)}\."):
        choose_units(tiny_model(), [name + "s"])


def test_recording_leaves_gradients_bit_identical():
    watched, plain = tiny_model(), tiny_model()
    batch = random_batch(4)
    factors_of(watched, choose_units(watched, ["layers.*"]), batch)
    logits = plain(batch[0], tiny_masks(TINY, range(4)))
    F.cross_entropy(logits.flatten(0, 1), batch[1].flatten()).backward()
    for (name, p), q in zip(watched.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad), name
