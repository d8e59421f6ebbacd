"""A loop records outliers, factors or both; the audit is the same for all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ontogeny

N, STEPS = 6, 5


def record(folder: Path, **kinds: object) -> "ontogeny.Run":
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    uri = str(folder / "run")
    with ontogeny.record(model, optimizer, run=uri, segment_steps=STEPS, **kinds) as recorder:  # pyright: ignore[reportArgumentType]
        for step in range(STEPS):
            recorder.datums(range(N))
            x, y = torch.randn(N, 12), torch.randn(N, 3)
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1 if step % 2 else 10.0)
            optimizer.step()
    return ontogeny.open_run(uri)


def test_factors_alone_give_the_same_steps_checkpoints_and_gradients(tmp_path: Path):
    both = record(tmp_path / "both", factors=ontogeny.FactorConfig(enabled=True))
    alone = record(
        tmp_path / "alone",
        factors=ontogeny.FactorConfig(enabled=True),
        outliers=ontogeny.OutlierConfig(enabled=False),
    )
    assert alone.steps().equals(both.steps())
    assert (alone.steps()["audit_error"] < 1e-5).all()
    assert not any(file.kind == "outliers" for part in alone.segments for file in part.files)
    for step in range(STEPS):
        wanted = both.gradient(step, 2, "0.weight")
        assert np.array_equal(alone.gradient(step, 2, "0.weight"), wanted)
    with pytest.raises(ontogeny.CaptureError, match="has no outliers recorded"):
        alone.shifts()


def test_a_clip_factor_is_found_as_well_through_probes_as_from_whole_sums(tmp_path: Path):
    """Steps 0 and 4 are the edges of the segment, where sums are whole."""
    clip_S = record(tmp_path).steps()["clip"].to_numpy()
    assert (clip_S[[0, 2, 4]] == 1).all()
    assert (clip_S[[1, 3]] < 1).all()


def test_recording_nothing_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(ontogeny.CaptureError, match=r"outliers, tallies and factors are all off"):
        record(tmp_path, outliers=ontogeny.OutlierConfig(enabled=False))
    assert not (tmp_path / "run").exists()
