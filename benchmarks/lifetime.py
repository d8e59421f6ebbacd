"""Measure how much of the weights' change shifts and lifetime shifts account for.

``python -m benchmarks.lifetime`` trains the study's model for one epoch of the language reference
that comes with Python, under each of ``OPTIMIZERS``. For the units in ``UNITS`` together it prints
‖Σ shifts‖ / ‖change‖ and ‖Σ lifetime shifts‖ / ‖change‖ over all datums and steps, the same of the
decay of the initial weights, and ‖Σ lifetime shifts + decay − change‖ / ‖change‖ (the law
Lifetime). The change is that of the weights over the run. Takes some ten minutes on two cores.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from analysis.run.run import Run, open_run
from benchmarks.harness.report import machine
from capture.config.reading import make_config
from capture.gradients.dense import write_shifts
from capture.gradients.factors import Factor
from capture.training.loop import capture_run

UNITS = ("layers.0.linear1.weight", "layers.2.linear2.weight")
ADAM = {"learning_rate": 1e-3, "decay": 1.0, "clip": 1.0}
OPTIMIZERS = {
    "SGD, learning rate 5 (the study)": {},
    "momentum 0.9, learning rate 0.5": {"learning_rate": 0.5, "optimizer": {"momentum": 0.9}},
    "Nesterov 0.9, decay 0.0001, learning rate 0.5": {
        "learning_rate": 0.5,
        "optimizer": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    },
    "Adam, learning rate 0.001": ADAM | {"optimizer": {"kind": "adam"}},
    "AdamW, decay 0.1, learning rate 0.001, warm-up and cosine": ADAM
    | {
        "optimizer": {"kind": "adamw", "weight_decay": 0.1},
        "schedule": {"kind": "cosine", "warmup_steps": 20},
    },
}


@dataclass(frozen=True)
class Line:
    """Norms relative to that of the change of the weights."""

    optimizer: str
    steps: int
    shifts: float
    lifetime_shifts: float
    initial_decay: float
    missed: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    lines = []
    print(f"{'':<58} steps  shifts  lifetime  decay  missed")
    for name in OPTIMIZERS:
        with tempfile.TemporaryDirectory() as folder:
            # Checkpoints alone; everything else is replayed.
            run = train(folder, name, arguments.epochs, capture={"record": "checkpoints"})
            line = measure(name, run)
        lines.append(line)
        shares = f"{line.shifts:>7.1%} {line.lifetime_shifts:>9.1%} {line.initial_decay:>6.1%}"
        print(f"{name:<58} {line.steps:>5} {shares}  {line.missed:.0e}", flush=True)
    if arguments.json:
        found = {"units": UNITS, "lines": [asdict(line) for line in lines], "machine": machine()}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def train(folder: str, name: str, epochs: int, *, capture: dict[str, object]) -> Run:
    """Train the study's model under one of ``OPTIMIZERS``."""
    values = {
        "run": {"uri": f"{folder}/run"},
        "training": {"epochs": epochs, "device": "cpu"} | OPTIMIZERS[name],
        "capture": capture,
    }
    capture_run(make_config(values), lambda event: None)
    return open_run(f"{folder}/run")


def measure(name: str, run: Run) -> Line:
    """Return the shares of all units together."""
    sums = [sums_of_unit(run, unit) for unit in UNITS]
    shifts, lifetimes, decay, change = (torch.cat(parts) for parts in zip(*sums, strict=True))
    size = change.norm()
    found = (shifts, lifetimes, decay, lifetimes + decay - change)
    return Line(name, run.steps_done, *(float(part.norm() / size) for part in found))


def sums_of_unit(run: Run, unit: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return Σ shifts, Σ lifetime shifts, decay and change of a unit, float64, flattened."""
    lifetimes = run._lifetimes
    initial, last = (run.checkpoint(step)[unit].double() for step in (0, run.steps_done))
    shift, lifetime, left = torch.zeros_like(last), torch.zeros_like(last), torch.ones_like(last)
    for update, after in lifetimes.backward(unit, 0, replay=True):
        applied = update.applied
        assert update.uses is not None
        gradient = batch_gradient(update.uses, len(update.datum_N), last.shape)
        shift += applied.rate * applied.clip * applied.preconditioner * gradient
        lifetime += after.of_gradient(applied) * gradient
        left = after.before(applied).weight
    parts = (shift, lifetime, (left - 1) * initial, last - initial)
    return tuple(part.flatten() for part in parts)  # pyright: ignore[reportReturnType]


def batch_gradient(uses: list[Factor], count: int, shape: torch.Size) -> Tensor:
    out_NS = torch.empty(count, shape.numel())
    write_shifts(uses, 1.0, out_NS)
    return out_NS.double().sum(0).reshape(shape)


if __name__ == "__main__":
    main()
