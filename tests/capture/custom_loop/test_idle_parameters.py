"""Parameters without gradient in a step: nothing moves them, also after a resume."""

from pathlib import Path

import numpy as np
import pytest
import torch
from custom_loops import TOP, loss_of, tokens, uri
from exact_gradients import Layers

from analysis.run.run import open_run
from capture.custom_loop.record import record
from capture.custom_loop.recording import Recording

OPTIMIZERS = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.01, weight_decay=0.1),
}
LEFT_OUT = (None, 1, 2, 1, 1, 0, 2, None)
"""The layer that a step leaves out."""


def fresh(kind: str) -> tuple[Layers, torch.optim.Optimizer]:
    model = Layers()
    model.embedding.requires_grad_(False)  # frozen, and held by the optimizer
    return model, OPTIMIZERS[kind](model)


def train(
    model: Layers, optimizer: torch.optim.Optimizer, recorder: Recording, steps: range
) -> None:
    for step in steps:
        model.left_out = LEFT_OUT[step]
        recorder.datums([step, step + 1])
        loss_of(model, tokens()[step : step + 2]).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_idle_parameters_have_no_shifts_and_do_not_move(tmp_path, kind):
    model, optimizer = fresh(kind)
    with record(model, optimizer, run=uri(tmp_path), outliers=TOP, segment_steps=1) as recorder:
        train(model, optimizer, recorder, range(4))
    run = open_run(uri(tmp_path))
    used = {step: set(rows["unit"]) for step, rows in run.shifts().groupby("step")}
    assert "embedding.weight" not in run.layout.names
    for step in (1, 2, 3):
        name = f"layers.{LEFT_OUT[step]}.weight"
        assert name not in used[step]
        before, after = (run.checkpoint(number)[name] for number in (step, step + 1))
        assert torch.equal(before, after)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_continues_with_each_parameters_own_count(tmp_path, kind):
    def run_in_parts(folder: Path, *parts: range) -> Layers:
        model = Layers()
        for number, steps in enumerate(parts):
            model, optimizer = fresh(kind)
            more = {"outliers": TOP, "segment_steps": 4, "resume": number > 0}
            with record(model, optimizer, run=uri(folder), **more) as recorder:
                recorder.restore()
                train(model, optimizer, recorder, steps)
        return model

    one = run_in_parts(tmp_path / "one", range(8))
    other = run_in_parts(tmp_path / "other", range(4), range(4, 8))
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    runs = [open_run(uri(tmp_path / name)) for name in ("one", "other")]
    left, right = (run.shifts()["diff"].to_numpy() for run in runs)
    np.testing.assert_array_equal(left, right)
