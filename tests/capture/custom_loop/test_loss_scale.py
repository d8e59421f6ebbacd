"""A loop with a ``GradScaler`` is recorded like the same loop without one."""

import numpy as np
import pandas as pd
import pytest
import torch
from custom_loops import TOP, Small, loss_of, tokens, uri
from torch import nn

from analysis.run.run import Run, open_run
from capture.config.records import FactorConfig
from capture.custom_loop.record import record

OPTIMIZERS = {
    "sgd": lambda m, fused: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, fused=fused),
    "adamw": lambda m, fused: torch.optim.AdamW(m.parameters(), 0.01, fused=fused),
}


def recorded(
    folder, name: str, kind: str, *, scaled: bool, fused: bool, unscale: bool = False
) -> Run:
    """Three steps, of which the second overflows: a scaler skips it."""
    model = Small()
    optimizer = OPTIMIZERS[kind](model, fused)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    factors = FactorConfig(enabled=True)
    with record(model, optimizer, run=uri(folder, name), outliers=TOP, factors=factors) as recorder:
        for ids in ([0, 1, 2], None, [5, 3]):
            if ids is None and not scaled:
                continue
            recorder.datums(ids or [9, 10])
            loss = loss_of(model, tokens()[ids or [9, 10]])
            scaler.scale(loss if ids else loss * torch.inf).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return open_run(uri(folder, name))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("unscale", [False, True], ids=["whole", "clipped"])
def test_a_scaler_changes_nothing_that_is_recorded(tmp_path, kind, fused, unscale):
    one = recorded(tmp_path, "one", kind, scaled=False, fused=fused, unscale=unscale)
    other = recorded(tmp_path, "other", kind, scaled=True, fused=fused, unscale=unscale)
    wanted, found = one.steps(), other.steps()
    for column in ("loss", "gradient_norm", "clip"):
        np.testing.assert_allclose(found[column], wanted[column], rtol=1e-5)
    assert list(map(list, found["datums"])) == [[0, 1, 2], [5, 3]]
    pair = [run.shifts().sort_values(["step", "datum_id", "unit", "index"]) for run in (one, other)]
    left, right = (
        pd.Series(
            rows["diff"].to_numpy(), [rows["step"], rows["datum_id"], rows["unit"], rows["index"]]
        )
        for rows in pair
    )
    both = left.index.intersection(right.index)
    assert len(both) > 0.9 * len(left)
    np.testing.assert_allclose(left[both], right[both], rtol=1e-4, atol=1e-8)
    for unit in one.layout.names:
        gradients = [run.gradient(1, 5, unit) for run in (one, other)]
        np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-7)
