"""Tallies against definitions written out, and their sums over batches."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from capture.config.reading import make_config
from capture.errors import ConfigError
from capture.format.tally_tables import SIGNIFICANT_BITS, round_to_bits
from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout
from capture.shifts.tallies import BYS, Tally, TallyConfig, position_tallies, tallied_units

# Shapes: N datum, T position, M position of the batch, I input width, O output width, V vocabulary.

N, T, I, O, V = 3, 5, 4, 6, 7  # noqa: E741
SCALE = -0.3
WIDTHS = {"u": I}


def draw(seed: int = 0, datums: int = N) -> tuple[Factors, dict[str, Tensor], Tensor, Tensor]:
    """Factors of one unit, its weights, and a batch's tokens and targets."""
    generator = torch.Generator().manual_seed(seed)
    delta_NTO = torch.randn(datums, T, O, generator=generator)
    a_NTI = torch.randn(datums, T, I, generator=generator)
    weights = {"u": torch.randn(O, I, generator=generator)}
    token_NT, target_NT = torch.randint(V, (2, datums, T), generator=generator)
    return {"u": [Factor("outer", delta_NTO, a_NTI)]}, weights, token_NT, target_NT


def tallied(*batches: tuple[Factors, dict[str, Tensor], Tensor, Tensor]) -> Tally:
    tally = Tally(WIDTHS, V, torch.device("cpu"))
    for factors, weights, token_NT, target_NT in batches:
        tally.add(factors, weights, SCALE, token_NT, target_NT)
    return tally


def test_update_norm_is_the_norm_of_each_positions_part_of_the_update():
    """Against the shift of every single position, written out."""
    factors, _, token_NT, target_NT = batch = draw()
    sums = tallied(batch).drain()
    delta_NTO, a_NTI = factors["u"][0].delta_NTO, factors["u"][0].a_NTI
    assert a_NTI is not None
    for by, named_NT in zip(BYS, (target_NT, token_NT), strict=True):
        wanted_VI = torch.zeros(V, I)
        for n in range(N):
            for t in range(T):
                shift_OI = SCALE * torch.outer(delta_NTO[n, t], a_NTI[n, t])
                wanted_VI[named_NT[n, t]] += shift_OI.norm(dim=0)
        torch.testing.assert_close(sums.of(by, "u")[0], wanted_VI)


def test_ablation_estimate_is_the_first_order_effect_of_ablating_the_neuron():
    """Against the derivative of the loss along "a times ε" for one neuron, by autograd."""
    generator = torch.Generator().manual_seed(1)
    a_NTI = torch.randn(N, T, I, generator=generator)
    weight_OI = torch.randn(O, I, generator=generator)
    read_VO = torch.randn(V, O, generator=generator)
    target_NT = torch.randint(V, (N, T), generator=generator)
    gate_I = torch.ones(I, requires_grad=True)
    hidden_NTO = (a_NTI * gate_I) @ weight_OI.T
    loss_NT = F.cross_entropy(
        (hidden_NTO @ read_VO.T).flatten(0, 1), target_NT.flatten(), reduction="none"
    ).view(N, T)
    wanted_VI = torch.zeros(V, I)
    for token in range(V):
        chosen = loss_NT[target_NT == token].sum()
        if chosen.requires_grad:
            wanted_VI[token] = -torch.autograd.grad(chosen, gate_I, retain_graph=True)[0]
    (delta_NTO,) = torch.autograd.grad(loss_NT.mean(), hidden_NTO)
    factors: Factors = {"u": [Factor("outer", delta_NTO, a_NTI)]}
    sums = tallied((factors, {"u": weight_OI}, target_NT, target_NT)).drain()
    torch.testing.assert_close(sums.of("target", "u")[1], wanted_VI)


def test_tallies_by_target_and_by_input_have_the_same_totals():
    sums = tallied(draw()).drain()
    torch.testing.assert_close(sums.sum_VK["target"].sum(0), sums.sum_VK["input"].sum(0))
    assert sums.count_V["target"].sum() == sums.count_V["input"].sum() == N * T


def test_tallies_add_up_over_batches():
    one, two = draw(1), draw(2)
    both = tallied(one, two).drain()
    first, second = (tallied(batch).drain() for batch in (one, two))
    for by in BYS:
        torch.testing.assert_close(both.sum_VK[by], first.sum_VK[by] + second.sum_VK[by])
        assert torch.equal(both.count_V[by], first.count_V[by] + second.count_V[by])


def test_batch_mates_do_not_change_what_a_datum_adds():
    """Its δ holds 1 / (N·T) of the mean loss, so half a batch has twice the δ."""
    factors, weights, *_ = draw(3, datums=4)
    whole = position_tallies(factors, weights, SCALE, WIDTHS)
    halves = [
        position_tallies(
            {
                "u": [
                    use.map_tensors(lambda x, part=part: x[2 * part : 2 * part + 2])
                    for use in factors["u"]
                ]
            },
            weights,
            SCALE,
            WIDTHS,
        )
        for part in (0, 1)
    ]
    norm, estimate = torch.cat(halves).split(I, dim=1)
    torch.testing.assert_close(torch.cat([norm, 2 * estimate], dim=1), whole)


def test_draining_begins_a_window_anew():
    tally = tallied(draw(1))
    first = tally.drain()
    tally.add(*draw(1)[:2], SCALE, *draw(1)[2:])
    again = tally.drain()
    for by in BYS:
        assert torch.equal(first.sum_VK[by], again.sum_VK[by])


def test_rounding_is_to_nearest_and_stays_within_its_bound():
    values = torch.randn(10_000) * torch.exp(4 * torch.randn(10_000))
    found = round_to_bits(values.numpy())
    error = np.abs(found - values.numpy()) / np.abs(values.numpy())
    assert 0.9 * 2.0**-SIGNIFICANT_BITS < error.max() <= 2.0**-SIGNIFICANT_BITS
    assert np.array_equal(round_to_bits(found), found)
    assert round_to_bits(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def test_only_captured_linear_weights_that_match_are_tallied():
    shapes = {"a.linear1.weight": (3, 2), "a.linear1.bias": (3,), "a.out_proj.weight": (2, 2)}
    layout = Layout(shapes)
    assert tallied_units(layout, TallyConfig()) == {"a.linear1.weight": 2}
    assert tallied_units(layout, TallyConfig(units=["*"])) == {
        "a.linear1.weight": 2,
        "a.out_proj.weight": 2,
    }
    assert tallied_units(layout, TallyConfig(enabled=False)) == {}


def test_windows_have_at_least_one_step():
    with pytest.raises(ConfigError, match=r"capture\.tally\.window_steps: got 0, must be at least"):
        make_config({}, ["capture.tally.window_steps=0"])


def test_a_weight_that_is_stored_transposed_has_the_same_tallies():
    """Neurons are inputs, on whichever axis of the weight they lie."""
    generator = torch.Generator().manual_seed(3)
    delta_NTO, a_NTI = (torch.randn(2, 3, width, generator=generator) for width in (5, 4))
    weight_OI = torch.randn(5, 4, generator=generator)
    seen: list[torch.Tensor] = []
    for transposed, weight in ((False, weight_OI), (True, weight_OI.T.contiguous())):
        layout = Layout.of({"w": weight}, ["w"] if transposed else [])
        widths = tallied_units(layout, TallyConfig(units=["w"]))
        assert widths == {"w": 4}
        factors = {"w": [Factor("outer", delta_NTO, a_NTI, transposed)]}
        found_MK = position_tallies(factors, {"w": weight}, SCALE, widths)
        seen.append(found_MK)
    torch.testing.assert_close(seen[1], seen[0])
