"""Laws 1, 2 and 9 where a loop multiplies entries of the gradient by different numbers."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from custom_loops import Small, loss_of, tokens, uri
from numpy.testing import assert_allclose
from torch import Tensor, nn

from analysis.run.run import Run, open_run
from capture.config.records import FactorConfig
from capture.custom_loop.passes.gradient_changes import GradientChanges
from capture.custom_loop.record import record
from capture.errors import RunError
from capture.shifts.outliers import OutlierConfig

TOKENS, STEPS, N = tokens(), 3, 4
ALL = OutlierConfig(k=sum(p.numel() for p in Small().parameters()))
"""Keeps every shift."""
Change = Callable[[Small], object]


def by_value(model: Small, foreach: bool | None = None) -> None:
    nn.utils.clip_grad_value_(model.parameters(), 1e-2, foreach=foreach)


def by_group(model: Small) -> None:
    for part, limit in ((model.embedding, 0.02), (model.layer, 0.05)):
        nn.utils.clip_grad_norm_(part.parameters(), limit)


def norm(model: Small) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)


def in_turn(*changes: Change) -> Change:
    return lambda model: [change(model) for change in changes]


def by_hand(model: Small) -> None:
    """What a loop may write itself: a factor for a layer, a row that is left out, limits."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    mask = torch.ones_like(model.embedding.weight)
    mask[1] = 0
    grads[0] *= mask
    grads[1].div_(2)
    grads[2].data.clip_(max=1e-3)
    grads[3].view(-1).mul_(0.5)


CHANGES: dict[str, Change] = {
    "by value": by_value,
    "by value, tensor by tensor": partial(by_value, foreach=False),
    "by group": by_group,
    "by group, then by value": in_turn(by_group, by_value),
    "by value, then the total norm": in_turn(by_value, norm),
    "the total norm, then by value": in_turn(norm, by_value),
    "by hand": by_hand,
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 0.5),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, weight_decay=0.1),
}


def train(model: Small, optimizer: torch.optim.Optimizer, change: Change) -> list[Tensor]:
    """Take steps of two micro-batches; return by how much each moved the weights, [P]."""
    moved = []
    for step in range(STEPS):
        before = weights_of(model)
        for piece in TOKENS[N * step : N * (step + 1)].chunk(2):
            (loss_of(model, piece) / 2).backward()
        change(model)
        optimizer.step()
        optimizer.zero_grad()
        moved.append(weights_of(model) - before)
    return moved


def weights_of(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def recorded(run: str, optimizer: str, change: Change) -> tuple[Run, Small, list[Tensor]]:
    model = Small()
    made = OPTIMIZERS[optimizer](model)
    factors = FactorConfig(enabled=True)
    with record(model, made, run=run, outliers=ALL, factors=factors, segment_steps=STEPS):
        moved = train(model, made, change)
    return open_run(run), model, moved


def shifts_of(run: Run, step: int) -> np.ndarray:
    """Return all shifts of a step, [N, P]; those that are 0 are no outliers."""
    layout = run.layout
    first = dict(zip(layout.names, layout.offsets, strict=False))
    found, rows = np.zeros((N, layout.size)), run.shifts()
    rows = rows[rows["step"] == step]
    place = rows["unit"].astype(str).map(first).to_numpy() + rows["index"].to_numpy()
    found[rows["datum_ix"], place] = rows["diff"]
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_shifts_of_sgd_are_the_multiplied_gradients_of_passes_of_one_datum_each(tmp_path, name):
    run, _, moved = recorded(uri(tmp_path), "sgd", CHANGES[name])
    again = Small()
    for step in range(STEPS):
        gradient_NP = torch.stack([gradient(again, d) for d in range(N * step, N * (step + 1))])
        raw_P = gradient_NP.sum(0)
        nn.utils.vector_to_parameters(raw_P.clone(), (kept := Small()).parameters())
        for parameter, grad in zip(again.parameters(), kept.parameters(), strict=True):
            parameter.grad = grad.detach()
        CHANGES[name](again)
        by_P = torch.where(raw_P == 0, 1.0, grads_of(again) / raw_P)
        wanted_NP = (-0.5 * by_P * gradient_NP).numpy()
        found_NP = shifts_of(run, step)
        assert_allclose(found_NP, wanted_NP, atol=2e-6 * np.abs(wanted_NP).max())  # laws 2 and 9
        moved_P = moved[step].numpy()
        missed = np.linalg.norm(found_NP.sum(0) - moved_P)
        stored = 2.0**-24 * float(weights_of(again).norm())  # rounding of stored weights
        assert missed < 1e-5 * np.linalg.norm(moved_P) + stored  # law 1
        nn.utils.vector_to_parameters(weights_of(again) + moved[step], again.parameters())


def gradient(model: nn.Module, datum: int) -> Tensor:
    """Return the gradient of a datum's share of its batch's loss, by a pass of its own, [P]."""
    model.zero_grad()
    (loss_of(model, TOKENS[[datum]]) / N).backward()
    return grads_of(model).clone()


def grads_of(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_recorded_norm_and_factor_are_those_of_all_gradients(tmp_path):
    run, _, _ = recorded(uri(tmp_path), "sgd", CHANGES["by value, then the total norm"])
    model = Small()
    (loss_of(model, TOKENS[:N])).backward()
    raw = float(grads_of(model).norm())
    by_value(model)
    clip = 0.05 / float(grads_of(model).norm())
    first = run.steps().iloc[0]
    assert_allclose([first["gradient_norm"], first["clip"]], [raw, clip], rtol=1e-4)


@pytest.mark.parametrize("unscales_first", [True, False])
def test_the_scale_of_a_grad_scaler_is_no_change(tmp_path, unscales_first):
    model, scaler = Small(), torch.amp.GradScaler("cpu", init_scale=16.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    with record(model, optimizer, run=uri(tmp_path), outliers=ALL):
        scaler.scale(loss_of(model, TOKENS[:N])).backward()
        if unscales_first:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_value_(model.parameters(), 1e-2 if unscales_first else 16e-2)
        scaler.step(optimizer)
    wanted, _, _ = recorded(uri(tmp_path, "plain"), "sgd", by_value)
    run = open_run(uri(tmp_path))
    assert_allclose(run.steps()["clip"], 1.0)
    assert_allclose(run.steps()["gradient_norm"], wanted.steps()["gradient_norm"][:1], rtol=1e-5)
    assert_allclose(shifts_of(run, 0), shifts_of(wanted, 0), atol=1e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_multipliers_that_are_not_stored_are_not_guessed(tmp_path, optimizer):
    run, _, _ = recorded(uri(tmp_path), optimizer, by_value)
    assert run.gradient(1, 5, "layer.weight").any()
    for more in ({}, {"lifetime": True}):
        with pytest.raises(
            RunError, match=r"clipping by value or by group\), which are not stored"
        ):
            run.shift(1, 5, "layer.weight", **more)


@pytest.mark.parametrize("name", CHANGES)
def test_the_audit_holds_for_adamw_and_training_stays_bit_identical(tmp_path, name):
    run, model, _ = recorded(uri(tmp_path), "adamw", CHANGES[name])
    plain = Small()
    train(plain, OPTIMIZERS["adamw"](plain), CHANGES[name])
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    assert 0 < run.steps()["audit_error"].max() < 1e-5


def test_empty_shards_of_gradients_are_told_apart() -> None:
    """A rank may hold no entry of several units, and empty tensors share their address."""
    holders = {name: nn.Parameter(torch.empty(0, 3)) for name in ("first", "second")}
    for holder in holders.values():
        holder.grad = torch.empty(0, 3)
    changes = GradientChanges(holders)
    assert [changes.name_of(holder.grad) for holder in holders.values()] == list(holders)
