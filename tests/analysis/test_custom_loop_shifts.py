"""``run.shift`` of a custom training loop, whose preconditioners are not stored."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from custom_loops import Small, loss_of, tokens, uri
from torch import nn

from analysis.run.run import Run, open_run
from capture.config.records import FactorConfig
from capture.custom_loop.record import record
from capture.errors import RunError
from capture.shifts.outliers import OutlierConfig

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), 0.3, 0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), 0.02, weight_decay=0.1),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.02),
}


def two_rates(model: nn.Module) -> torch.optim.Optimizer:
    first, *others = model.parameters()
    return torch.optim.AdamW([{"params": [first]}, {"params": others, "lr": 0.1}], 0.02)


def recorded(
    folder: Path, make: Callable[[nn.Module], torch.optim.Optimizer], *, factors: bool = True
) -> Run:
    model = Small()
    optimizer = make(model)
    with record(
        model,
        optimizer,
        run=uri(folder),
        outliers=OutlierConfig(k=197),
        factors=FactorConfig(enabled=factors),
        segment_steps=3,
    ) as recorder:
        for step in range(5):
            ids = [(3 * step + slot) % 12 for slot in range(3)]
            recorder.datums(ids)
            loss_of(model, tokens()[ids]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return open_run(uri(folder))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shifts_from_factors_equal_those_that_were_recorded(tmp_path, name):
    run = recorded(tmp_path, OPTIMIZERS[name])
    rows = run.shifts()
    for step, datum in ((0, 1), (2, 8), (4, 2)):
        for unit in run.layout.names:
            found = run.shift(step, datum, unit).ravel()
            own = rows[(rows.step == step) & (rows.datum_id == datum) & (rows.unit == unit)]
            wanted = np.zeros_like(found)
            wanted[own["index"]] = own["diff"]
            assert np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted) + 1e-9


def test_a_unit_whose_group_has_another_learning_rate_is_refused_with_the_reason(tmp_path):
    run = recorded(tmp_path, two_rates)
    assert run.shift(4, 2, "embedding.weight").any()
    with pytest.raises(RunError, match=r"other settings of the optimizer for layer\.weight") as e:
        run.shift(4, 2, "layer.weight")
    assert "\n" not in str(e.value)


def test_without_factors_they_are_asked_for(tmp_path):
    run = recorded(tmp_path, OPTIMIZERS["adamw"], factors=False)
    with pytest.raises(RunError, match=r"Record factors while it trains: ontogeny\.record"):
        run.shift(0, 1, "layer.weight")
