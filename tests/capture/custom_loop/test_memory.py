"""Nothing of a step outlives it: neither graph nor factors wait for Python to look for cycles."""

import gc
import weakref

import torch
from torch import nn

import ontogeny


def test_a_step_s_output_is_freed_at_its_end_without_garbage_collection(tmp_path):
    """The first step is checked, so its loss is noted; the others are not."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    gc.collect()
    gc.disable()
    try:
        with ontogeny.record(model, optimizer, run=str(tmp_path / "run")) as recorder:
            for step in range(3):
                recorder.datums(range(5))
                out = model(torch.randn(5, 4))
                optimizer.zero_grad()
                nn.functional.mse_loss(out, torch.randn(5, 3)).backward()
                optimizer.step()
                kept = weakref.ref(out)
                del out
                assert kept() is None, f"step {step}"
    finally:
        gc.enable()
