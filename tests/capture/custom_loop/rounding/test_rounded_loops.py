"""Custom loops under bfloat16 autocast: no rounding stops a loop, and no lost datum passes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from custom_loops import TOP, V, uri
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.run.run import open_run
from capture.custom_loop.record import record
from capture.errors import AuditError, UnitError

SHAPES = [(4, 5, 6, 6), (4, 1, 8, 4), (8, 16, 16, 16), (2, 3, 32, 8)]
"""Datums of a batch, positions, widths of embedding and layer."""


def model_of(widths: tuple[int, int], seed: int, *, norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    width, hidden = widths
    inner = [nn.Linear(width, hidden), nn.Tanh(), *([nn.LayerNorm(hidden)] if norm else [])]
    return nn.Sequential(nn.Embedding(V, width), *inner, nn.Linear(hidden, V))


def loss_of(model: nn.Module, token_NT: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logit_NTV = model(token_NT[:, :-1])
    return F.cross_entropy(logit_NTV.float().flatten(0, 1), token_NT[:, 1:].flatten())


def train(
    folder: Path,
    model: nn.Module,
    token_NT: Tensor,
    batch: int,
    change: Callable[[Tensor], None] = lambda token_NT: None,
) -> None:
    """Take one step on each batch; ``change`` may change the gradients before it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with record(model, optimizer, run=uri(folder), outliers=TOP):
        for own_NT in token_NT.split(batch):
            loss_of(model, own_NT).backward()
            change(own_NT)
            optimizer.step()
            optimizer.zero_grad()


def tokens(num_datums: int, length: int, seed: int) -> Tensor:
    return torch.randint(V, (num_datums, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_stops_no_loop(tmp_path: Path, shape: tuple[int, ...], seed: int):
    batch, window, *widths = shape
    model = model_of((widths[0], widths[1]), seed)
    train(tmp_path, model, tokens(16, window + 1, seed), batch)
    errors = open_run(uri(tmp_path)).steps()["audit_error"]
    assert errors.between(1e-5, 0.02).all()


@pytest.mark.parametrize("clip", [1e9, 0.01])
def test_rounding_stops_no_loop_that_clips(tmp_path: Path, clip: float):
    model = model_of((8, 4), seed=1)

    def clipped(token_NT: Tensor) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)

    train(tmp_path, model, tokens(32, 2, 1), 4, clipped)
    assert (open_run(uri(tmp_path)).steps()["clip"] < 1).all() == (clip < 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_datum_that_gradients_lack_stops_the_loop(tmp_path: Path, shape: tuple[int, ...]):
    batch, window, *widths = shape
    model = model_of((widths[0], widths[1]), seed=0)

    def without_first(token_NT: Tensor) -> None:
        lost = loss_of(model, token_NT[:1]) / len(token_NT)
        grads = torch.autograd.grad(lost, list(model.parameters()))
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            assert parameter.grad is not None
            parameter.grad -= grad

    with pytest.raises(AuditError, match=r"^step 0: shifts miss the applied change"):
        train(tmp_path, model, tokens(16, window + 1, 0), batch, without_first)


def test_a_norm_that_torch_adds_up_coarsely_is_named(tmp_path: Path):
    model = model_of((8, 8), seed=0, norm=True)
    with pytest.raises(UnitError, match=r"^3\.weight: is used by layer_norm on bfloat16 activat"):
        train(tmp_path, model, tokens(16, 9, 0), 4)
