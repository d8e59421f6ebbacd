"""Law 1 under bfloat16 autocast: the bound on rounding holds, and hides no lost datum.

Shapes: N datum, P captured parameter.
"""

from dataclasses import replace

import pytest
import torch
from reference import TINY, random_batch, tiny_model
from torch import Tensor, nn
from torch.nn import functional as F

from capture.device import deterministic
from capture.engine.audit import discrepancies, gradient_discrepancy
from capture.engine.engine import Engine
from capture.engine.step import Step
from capture.gradients.dense import map_factors, sum_shifts, write_shifts
from capture.gradients.factors import Factors, choose_units
from capture.gradients.layout import Layout
from capture.gradients.memo import tensor_key
from capture.gradients.tape import Tape
from capture.models.dropout import draw_masks
from capture.models.transformer import dropout_entries
from capture.optim.config import TrainingConfig
from capture.optim.optimizer_config import OptimizerConfig
from capture.optim.update import BFLOAT16_ROUNDING

ADAMW = OptimizerConfig(kind="adamw", weight_decay=0.1)


def make_engine(*, batch: int = 6, last_only: bool = False, device: str = "cpu", **training):
    model = tiny_model().to(device)
    units = choose_units(model, ["layers.*"])
    training = {"precision": "bfloat16", "learning_rate": 0.1} | training
    config = TrainingConfig(device="cpu", batch=batch, **training)
    return Engine(model, config, units=units, last_only=last_only, seed=5)


def take(engine: Engine, number: int = 0) -> tuple[Step, Tensor, Tensor]:
    """Take a step; return it and the captured weights before and after it."""
    layout = Layout.of(engine.units)
    token_NT, target_NT = random_batch(engine.config.batch, seed=number)
    before_P = layout.flatten(engine.units)
    batch = token_NT.to(engine.device), target_NT.to(engine.device)
    step = engine.step(*batch, step=number, epoch=0)
    return step, before_P, layout.flatten(engine.units)


def without(factors: Factors, slot: int) -> Factors:
    """Return the factors as if capture had lost a datum."""

    def emptied(delta_NTO: Tensor) -> Tensor:
        delta_NTO = delta_NTO.clone()
        delta_NTO[slot] = 0
        return delta_NTO

    return {
        name: [replace(use, delta_NTO=emptied(use.delta_NTO)) for use in uses]
        for name, uses in factors.items()
    }


def unexplained(engine: Engine, step: Step, before_P: Tensor, after_P: Tensor) -> float:
    """Return the largest difference in a step that the audit cannot explain."""
    layout = Layout.of(engine.units)
    recorded = step.last.factors if step.last else step.factors
    total_P = sum_shifts(recorded, layout, step.scale, step.preconditioner)
    found = discrepancies(step, layout, total_P, before_P, after_P, engine.config)
    return max(each.unexplained for each in found)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", [OptimizerConfig(), ADAMW], ids=["sgd", "adamw"])
def test_rounding_explains_the_difference(optimizer, accumulate, last_only):
    engine = make_engine(optimizer=optimizer, accumulate=accumulate, last_only=last_only)
    layout = Layout.of(engine.units)
    for number in range(3):
        step, before_P, after_P = take(engine, number)
        assert unexplained(engine, step, before_P, after_P) < 1e-6
        total_P = sum_shifts(step.factors, layout, step.scale, step.preconditioner)
        wanted_P = layout.flatten(step.gradients or {}) * (step.scale / step.clip)
        if step.preconditioner:
            total_P = total_P / layout.flatten(step.preconditioner)
        missed = (total_P - wanted_P).norm() / wanted_P.norm()
        assert 1e-4 < missed < BFLOAT16_ROUNDING


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("batch", [6, 600])
@pytest.mark.parametrize("optimizer", [OptimizerConfig(), ADAMW], ids=["sgd", "adamw"])
def test_one_lost_datum_is_detected_in_a_batch_of_any_size(optimizer, batch, last_only):
    engine = make_engine(optimizer=optimizer, batch=batch, last_only=last_only)
    step, before_P, after_P = take(engine)
    for slot in (0, batch // 2, batch - 1):
        lost = replace(step, factors=without(step.factors, slot))
        assert unexplained(engine, lost, before_P, after_P) > 1e-3
        if step.last:
            last = replace(step.last, factors=without(step.last.factors, slot))
            lost = replace(step, last=last)
            assert unexplained(engine, lost, before_P, after_P) > 1e-3


def test_an_entry_is_off_by_at_most_one_rounding():
    engine = make_engine(clip=1e9)
    layout = Layout.of(engine.units)
    step, _, _ = take(engine)
    assert step.gradients
    found_P, wanted_P = sum_shifts(step.factors, layout, 1.0), layout.flatten(step.gradients)
    off_P = (found_P - wanted_P).abs()
    assert (off_P <= BFLOAT16_ROUNDING * found_P.abs() + 1e-8).all()
    assert (off_P > 0.9 * BFLOAT16_ROUNDING * found_P.abs()).any()


class Thrice(nn.Module):
    """One linear layer used three times, with gradients that partly cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) - 0.9 * self.layer(x + 0.01) + 0.1 * self.layer(torch.tanh(x))


def test_the_bound_counts_the_roundings_of_several_uses_and_their_sums():
    torch.manual_seed(0)
    model, x_NTI = Thrice(), torch.randn(5, 7, 8)
    units = dict(model.named_parameters())
    layout, config = Layout.of(units), TrainingConfig(precision="bfloat16", batch=5)
    with Tape(units) as tape, torch.autocast("cpu", torch.bfloat16):
        out_NTO = model(x_NTI)
    (out_NTO.float().sin().mean()).backward()
    factors = map_factors(tape.factors(), Tensor.float)
    wanted_P = layout.flatten({name: p.grad for name, p in units.items() if p.grad is not None})
    found_P = sum_shifts(factors, layout, 1.0)
    shortfall = gradient_discrepancy(found_P, wanted_P, factors, 1.0, layout, config)
    assert shortfall.error > BFLOAT16_ROUNDING
    assert shortfall.unexplained < 1e-6
    lost = without(factors, 2)
    found_P = sum_shifts(lost, layout, 1.0)
    assert gradient_discrepancy(found_P, wanted_P, lost, 1.0, layout, config).unexplained > 1e-2


@pytest.mark.parametrize("how", ["read twice", "changed in between", "made for inference"])
def test_an_activation_read_twice_is_rounded_again_only_if_it_has_changed(how):
    """Autocast multiplies a copy, so the activation may be changed in place afterwards."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8, bias=False) for _ in range(2)]
    units = {f"{place}.weight": layer.weight for place, layer in enumerate(layers)}
    with torch.inference_mode(how == "made for inference"):
        x_NTI = torch.randn(5, 7, 8)
    with Tape(units) as tape, torch.autocast("cpu", torch.bfloat16):
        out_NTO = layers[0](x_NTI)
        if how == "changed in between":
            x_NTI.mul_(2)
        out_NTO = out_NTO + layers[1](x_NTI)
    out_NTO.float().sin().sum().backward()
    factors = tape.factors()
    first, second = (factors[name][0].sides[1] for name in units)
    assert (tensor_key(first) == tensor_key(second)) == (how != "changed in between")
    wanted_P = Layout.of(units).flatten({n: p.grad for n, p in units.items() if p.grad is not None})
    found_P = sum_shifts(factors, Layout.of(units), 1.0)
    assert (found_P - wanted_P).norm() < 2**-7 * wanted_P.norm()


def test_a_datum_s_gradient_equals_that_of_its_own_backward_pass():
    engine = make_engine()
    (token_NT, target_NT), layout = random_batch(6), Layout.of(engine.units)
    _, factors, _ = engine.gradients(token_NT, target_NT, 0)
    for slot in range(6):
        engine.optimizer.zero_grad()
        engine.micro_batch_gradients(token_NT, target_NT, range(slot, slot + 1), 0)
        wanted_P = layout.flatten(
            {n: p.grad for n, p in engine.units.items() if p.grad is not None}
        )
        own_P = torch.empty(6, layout.size)
        for name, own in zip(layout.names, own_P.split(layout.sizes, 1), strict=True):
            write_shifts(factors[name], 1.0, own)
        off_P = (own_P[slot] - wanted_P).abs()
        assert off_P.norm() < BFLOAT16_ROUNDING * wanted_P.norm()


def test_recording_leaves_weights_bit_identical():
    """Compare with a training loop in plain torch."""
    engine, plain = make_engine(optimizer=ADAMW, clip=0.5), tiny_model()
    adamw = torch.optim.AdamW(plain.parameters(), 0.1, weight_decay=0.1)
    plain.train()
    for number in range(3):
        take(engine, number)
        token_NT, target_NT = random_batch(6, seed=number)
        entries, device = dropout_entries(TINY, 7), torch.device("cpu")
        masks = draw_masks(
            range(6), entries=entries, dropout=0.2, seed=5, step=number, device=device
        )
        adamw.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logit_NTV = plain(token_NT, masks)
        F.cross_entropy(logit_NTV.float().flatten(0, 1), target_NT.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        adamw.step()
    for (name, one), other in zip(engine.model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_weights_factors_and_optimizer_state_stay_float32():
    engine = make_engine(optimizer=ADAMW)
    step, _, _ = take(engine)
    assert {tensor.dtype for tensor in engine.snapshot().values()} == {torch.float32}
    for uses in step.factors.values():
        for use in uses:
            assert use.delta_NTO.dtype == torch.float32
            assert use.a_NTI is None or use.a_NTI.dtype == torch.float32
    linear = step.factors["layers.0.linear1.weight"][0]
    assert linear.a_NTI is not None
    assert torch.equal(linear.a_NTI.bfloat16().float(), linear.a_NTI)


def test_bfloat16_gives_other_losses_than_float32():
    steps = [take(make_engine(precision=precision))[0] for precision in ("bfloat16", "float32")]
    assert steps[0].loss != steps[1].loss
    assert steps[0].loss == pytest.approx(steps[1].loss, rel=1e-2)


def test_products_are_rounded_once_within_a_run():
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction
    with deterministic():
        assert not settings.allow_bf16_reduced_precision_reduction
    assert settings.allow_bf16_reduced_precision_reduction == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", [OptimizerConfig(), ADAMW], ids=["sgd", "adamw"])
def test_rounding_explains_the_difference_on_a_gpu(optimizer):
    with deterministic():
        engine = make_engine(optimizer=optimizer, device="cuda", accumulate=2)
        step, before_P, after_P = take(engine)
        assert unexplained(engine, step, before_P, after_P) < 1e-6
        lost = replace(step, factors=without(step.factors, 3))
        assert unexplained(engine, lost, before_P, after_P) > 1e-3
