"""``run.shift`` of a custom training loop, whose preconditioners are not stored."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from adafactors import transformers_adafactor
from custom_loops import Small, Sometimes, loss_of, tokens, uri
from lion import Halving
from torch import nn

from analysis.run.custom_loop import UnitSettings, read_settings
from analysis.run.run import Run, open_run
from analysis.run.updates.followed_unit import require_followed
from capture.config.records import FactorConfig
from capture.config.settings import Config, to_values
from capture.custom_loop.record import record
from capture.errors import CaptureError, RunError
from capture.optim.optimizer_config import OptimizerConfig
from capture.shifts.outliers import OutlierConfig


def two_rates(model: nn.Module) -> torch.optim.Optimizer:
    first, *others = model.parameters()
    return torch.optim.AdamW([{"params": [first]}, {"params": others, "lr": 0.1}], 0.02)


def decay_of_matrices(model: nn.Module) -> torch.optim.Optimizer:
    """The parameter groups of most trainers."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.3},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.Adam(groups, 0.02)


OTHERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "amsgrad": lambda m: torch.optim.AdamW(m.parameters(), 0.02, amsgrad=True, weight_decay=0.1),
    "rmsprop": lambda m: torch.optim.RMSprop(
        m.parameters(), 0.01, centered=True, momentum=0.9, weight_decay=0.01
    ),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), 0.1, initial_accumulator_value=0.1),
    "adafactor": lambda m: torch.optim.Adafactor(m.parameters(), 0.05),
    "adafactor of transformers": transformers_adafactor,
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), 0.3, 0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), 0.02, weight_decay=0.1),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.02),
    "two learning rates": two_rates,
    "no decay of vectors": decay_of_matrices,
    **OTHERS,
}


def recorded(
    folder: Path,
    make: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    factors: bool = True,
    k: int = 197,
    model: nn.Module | None = None,
    after_step: Callable[[torch.optim.Optimizer], None] = lambda optimizer: None,
) -> Run:
    model = model or Small()
    optimizer = make(model)
    with record(
        model,
        optimizer,
        run=uri(folder),
        outliers=OutlierConfig(k=k),
        factors=FactorConfig(enabled=factors),
        segment_steps=3,
    ) as recorder:
        for step in range(5):
            ids = [(3 * step + slot) % 12 for slot in range(3)]
            if isinstance(model, Sometimes):
                model.step = step
            recorder.datums(ids)
            loss_of(model, tokens()[ids]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            after_step(optimizer)
    return open_run(uri(folder))


def some(also: str) -> list[str]:
    return [name for name in OPTIMIZERS if name not in OTHERS or name == also]


@pytest.mark.parametrize("name", some("rmsprop"))
def test_shifts_from_factors_equal_those_that_were_recorded(tmp_path, name):
    assert_as_recorded(recorded(tmp_path, OPTIMIZERS[name]))


def assert_as_recorded(run: Run) -> None:
    rows = run.shifts()
    for step, datum in ((0, 1), (2, 8), (3, 11), (4, 2)):
        for unit in run.layout.names:
            found = run.shift(step, datum, unit).ravel()
            own = rows[(rows.step == step) & (rows.datum_id == datum) & (rows.unit == unit)]
            wanted = np.zeros_like(found)
            wanted[own["index"]] = own["diff"]
            # Where gradient and L2 decay cancel, Adam divides by a small difference.
            assert np.linalg.norm(found - wanted) <= 5e-4 * np.linalg.norm(wanted) + 1e-9


@pytest.mark.parametrize("name", some("adagrad"))
def test_steps_that_leave_a_unit_out_have_shifts_of_zero(tmp_path, name):
    run = recorded(tmp_path, OPTIMIZERS[name], model=Sometimes())
    assert not run.shift(1, 4, "layer.weight").any()
    assert_as_recorded(run)


def test_settings_that_change_for_one_group_are_refused_with_the_reason(tmp_path):
    def change(optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[1]["lr"] *= 1.5

    run = recorded(tmp_path, two_rates, after_step=change)
    assert run.shift(4, 2, "embedding.weight").any()
    with pytest.raises(RunError, match=r"other settings of the optimizer for layer\.weight") as e:
        run.shift(4, 2, "layer.weight")
    assert "\n" not in str(e.value)


def test_without_factors_they_are_asked_for(tmp_path):
    run = recorded(tmp_path, OPTIMIZERS["adamw"], factors=False)
    with pytest.raises(RunError, match=r"Record factors while it trains: ontogeny\.record"):
        run.shift(0, 1, "layer.weight")


@pytest.mark.parametrize("name", OTHERS)
def test_lifetime_shifts_and_decay_sum_to_the_change(tmp_path, name):
    run, unit = recorded(tmp_path, OTHERS[name]), "layer.weight"
    total = run.initial_decay(unit)
    for found in run.lifetime_shifts(unit):
        total = total + found.shift_N.sum(0)
    change = (run.checkpoint()[unit] - run.checkpoint(0)[unit]).numpy()
    assert np.linalg.norm(total - change) <= 1e-4 * np.linalg.norm(change)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda m: torch.optim.Muon([m.layer.weight]),
            "trained layer.weight with Muon, which mixes the entries of a matrix",
        ),
        (lambda m: Halving([m.layer.weight], 0.1), "with Halving, which states its own rule"),
    ],
)
def test_lifetime_shifts_without_coefficients_are_refused_by_the_optimizers_name(
    tmp_path, make, reason
):
    run = recorded(tmp_path, make, k=5)
    with pytest.raises(RunError, match=reason) as raised:
        next(iter(run.lifetime_shifts("layer.weight")))
    assert "\n" not in str(raised.value)


def test_settings_that_an_optimizer_does_not_take_are_one_line():
    config = OptimizerConfig(kind="other", name="RMSprop")
    settings = UnitSettings(config, options={"fused": False, "betas": 3})
    require_followed(settings, "w", "runs/mine")  # unknown ones change nothing
    wrong = UnitSettings(config, options={"alpha": "fast"})
    with pytest.raises(
        RunError, match=r"has settings of RMSprop in run\.yaml that it does not take"
    ):
        require_followed(wrong, "w", "runs/mine")


@pytest.mark.parametrize(
    "groups",
    [
        3,
        [3],
        {"units": 1},
        [{"units": ["w"], "rate": 1.0, "optimizer": {"kind": "other"}}],
        [{"units": ["w"], "rate": 1.0, "optimizer": {}, "settings": 3}],
        [{"units": ["layer.weight"], "rate": "fast", "optimizer": {}}],
        [{"units": ["layer.weight"], "rate": 1.0, "optimizer": {"beta1": 7}}],
        [{"units": ["layer.weight"], "rate": 1.0, "optimizer": 3}],
        [{"units": 3, "rate": 1.0, "optimizer": {}}],
    ],
)
def test_damaged_parameter_groups_are_one_line(groups):
    provenance = {"config": to_values(Config()), "parameter_groups": groups}
    with pytest.raises(CaptureError, match=r"run\.yaml") as caught:
        read_settings("runs/mine", provenance)
    assert "\n" not in str(caught.value)
