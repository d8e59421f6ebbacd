"""Shifts by a linear map of the gradient, interruption, and errors, for optimizers of loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from adafactors import transformers_adafactor
from custom_loops import Small, loss_of, tokens, uri
from lion import Lion
from torch import Tensor, nn

from analysis.run.run import open_run
from capture.custom_loop.record import record
from capture.errors import ConfigError
from capture.optim.rules.muon import orthogonalized
from capture.shifts.outliers import OutlierConfig

Make = Callable[[nn.Module], torch.optim.Optimizer]


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.dim() == 2]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Any, part: range) -> None:
    for step in part:
        ids = [(3 * step + slot) % 12 for slot in range(3)]
        recorder.datums(ids)
        loss_of(model, tokens()[ids]).backward()
        optimizer.step()
        model.zero_grad()


def test_shifts_of_muon_are_its_orthogonalizing_map_of_each_datums_gradient(tmp_path):
    model, alone = Small(), Small()
    optimizer = torch.optim.Muon(matrices(model), 0.1)
    outliers = OutlierConfig(k=sum(p.numel() for p in matrices(model)))
    with record(model, optimizer, run=uri(tmp_path), outliers=outliers) as recorder:
        for _ in range(2):
            alone.load_state_dict(model.state_dict())
            steps(model, optimizer, recorder, range(1))
    losses = [loss_of(alone, tokens()[[i]]) / 3 for i in range(3)]
    own = [torch.autograd.grad(loss, matrices(alone)) for loss in losses]
    rows, group = open_run(uri(tmp_path)).shifts(steps=range(1, 2)), optimizer.param_groups[0]
    names = [name for name, p in model.named_parameters() if p.dim() == 2]
    for name, weight, *grads in zip(names, matrices(model), *own, strict=True):
        moment = optimizer.state[weight]["momentum_buffer"]
        _, mapped = orthogonalized(torch.stack(grads).sum(0).lerp(moment, 0.95), group)
        factor = -0.1 * max(1, weight.shape[0] / weight.shape[1]) ** 0.5 * (1 - 0.95**2)
        for datum, gradient in enumerate(grads):
            wanted = (factor * mapped(gradient)).numpy().ravel()
            mine = rows[(rows.datum_id == datum) & (rows.unit == name)]
            found = np.zeros_like(wanted)
            found[mine["index"]] = mine["diff"]
            assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


OPTIMIZERS: dict[str, Make] = {
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), 0.1, initial_accumulator_value=0.1),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters(), 0.01),
    "Adafactor of transformers": transformers_adafactor,
    "Muon": lambda m: torch.optim.Muon(matrices(m), 0.1),
    "Lion": lambda m: Lion(m.parameters(), 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_that_continues_has_the_bits_of_one_that_does_not_end(tmp_path, name):
    def weights(folder: str, ends: list[int]) -> list[Tensor]:
        first, model = 0, Small()
        for end in ends:
            model = Small()
            optimizer = OPTIMIZERS[name](model)
            with record(model, optimizer, run=uri(tmp_path, folder), resume=first > 0) as recorder:
                assert recorder.restore() == first
                steps(model, optimizer, recorder, range(first, end))
            first = end
        return list(model.parameters())

    pairs = zip(weights("once", [4]), weights("twice", [2, 4]), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


class Faulty(torch.optim.SGD):
    """States a preconditioner of another shape."""

    def preconditioner(self, update: Any) -> Tensor:
        return torch.ones(3)

    def carry(self, update: Any) -> float:
        return 0.0


def test_a_stated_rule_of_another_shape_is_refused_by_the_methods_name(tmp_path):
    model = Small()
    optimizer = Faulty(model.parameters(), 0.1)
    message = r"Faulty\.preconditioner returned a tensor \(3,\) for a parameter \(11, 6\)"
    with (
        pytest.raises(ConfigError, match=message),
        record(model, optimizer, run=uri(tmp_path)) as recorder,
    ):
        steps(model, optimizer, recorder, range(1))
