"""Compare what a custom training loop recorded with backward passes of one datum each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from custom_loops import uri
from torch import Tensor, nn

from analysis.run.run import open_run
from capture.config.records import FactorConfig
from capture.custom_loop.record import record
from capture.custom_loop.recording import Recording
from capture.shifts.outliers import OutlierConfig

Share = Callable[[], Tensor]
"""Computes one datum's part of the loss of its batch."""


@dataclass
class Session:
    """Records a loop, and keeps what is needed to compute each datum's gradient afterwards."""

    folder: Path
    model: nn.Module = field(default_factory=nn.Module)
    steps: list[tuple[dict[str, Tensor], dict[int, Share]]] = field(default_factory=list)
    """Weights before each step, and each datum's part of its loss."""

    @contextmanager
    def record(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, **more: Any
    ) -> Iterator[Recording]:
        self.model = getattr(model, "_orig_mod", model)
        outliers, factors = OutlierConfig(k=5), FactorConfig(enabled=True)
        with record(
            model, optimizer, run=uri(self.folder), outliers=outliers, factors=factors, **more
        ) as recorder:
            yield recorder

    def expect(self, shares: dict[int, Share]) -> None:
        """Note the weights before a step, and the loss of each of its datums."""
        weights = {name: x.detach().clone() for name, x in self.model.state_dict().items()}
        self.steps.append((weights, shares))

    def largest_error(self) -> float:
        """Return the largest error of a recorded gradient, relative to the largest of its step.

        Also checks which datums each step has. The audit has checked the sums.
        """
        run, worst = open_run(uri(self.folder)), 0.0
        assert len(run.steps()) == len(self.steps) > 0
        parameters = dict(self.model.named_parameters())
        units = {name: parameters[name] for name in run.layout.names}
        for step, (weights, shares) in enumerate(self.steps):
            assert sorted(run.steps()["datums"][step]) == sorted(shares)
            self.model.load_state_dict(weights)
            wanted = {datum: gradients(share(), units) for datum, share in shares.items()}
            largest = max(np.abs(g).max() for own in wanted.values() for g in own.values())
            for datum, own in wanted.items():
                for name, gradient in own.items():
                    error = np.abs(run.gradient(step, datum, name) - gradient).max()
                    worst = max(worst, error / largest)
        return worst


def gradients(loss: Tensor, units: dict[str, nn.Parameter]) -> dict[str, np.ndarray]:
    found = torch.autograd.grad(loss, list(units.values()), allow_unused=True)
    return {
        name: (torch.zeros_like(unit) if grad is None else grad.to_dense()).numpy()
        for (name, unit), grad in zip(units.items(), found, strict=True)
    }


class Unrecorded(Session):
    """Runs the same loop without recording it."""

    @contextmanager
    def record(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, **more: Any
    ) -> Iterator[Any]:
        self.model = model
        yield SimpleNamespace(datums=lambda ids: None)
