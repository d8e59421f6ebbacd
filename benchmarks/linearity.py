"""Does a removal do what its derivative says? ``python -m benchmarks.linearity RUN``.

A run of plain SGD is taken again in float64, step by step, beside

- the same without a random tenth of its datums, and the derivative of this change: with r_i = −1
  for the datums that are left out, t ← t − lr · (H t + Σ r_i ∇ℓ_i);
- the same from initial weights that differ by a random change of a relative size, for several
  sizes, and its derivative: u ← u − lr · H u.

The derivatives go forward, so they check those that ``capture.unrolled`` takes backward. A removal
that the derivative predicts has the same distance from the run, and cosine 1 with it.

Shapes: P all weights, N slot, D datum.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.report import machine
from capture.engine.step_plan import PlannedStep
from capture.errors import ConfigError
from capture.optim.optimizer import Tensors
from capture.replay.segments import ReplayableRun, read_replayable_run
from capture.retraining.weighted_engine import WeightedEngine
from capture.store import Store
from capture.unrolled.states import BackwardWalker, trained_parameters
from capture.unrolled.step_loss import StepLoss

SHARE = 0.1
"""Share of the datums that are left out."""
SEED = 0


@dataclass(frozen=True)
class Row:
    """What was measured after some steps; distances are ‖θ − θ of the run‖."""

    steps: int
    loss: float
    removal: float
    """Distance of the training without the datums."""
    predicted_removal: float
    cosine: float
    """Cosine between the change of the weights and the predicted one."""
    growth: dict[str, float]
    """Growth of random changes of the initial weights, by their relative size."""
    predicted_growth: float


@dataclass(frozen=True, eq=False)
class Bench:
    """The trainings side by side."""

    base: WeightedEngine
    without: WeightedEngine
    changed: dict[float, WeightedEngine]
    removed_D: np.ndarray
    """−1 for the datums that are left out, else 0."""
    size: float
    """Norm of the initial weights."""

    @classmethod
    def of(cls, run: ReplayableRun, sizes: Sequence[float]) -> "Bench":
        def engine() -> WeightedEngine:
            return WeightedEngine.of(run.plan, beginning=True, exact=True)

        count = len(run.plan.corpus.train.token_NT)
        removed_D = -(np.random.default_rng(SEED).random(count) < SHARE).astype(float)
        base = engine()
        found = cls(base, engine(), {size: engine() for size in sizes}, removed_D, norm(base))
        for size, own in found.changed.items():
            with torch.no_grad():
                for name, parameter in trained_parameters(own).items():
                    parameter.add_(found.random_change()[name], alpha=size)
        return found

    def random_change(self) -> Tensors:
        """Return a random direction with the norm of the initial weights."""
        generator = torch.Generator().manual_seed(SEED)
        drawn = {
            name: torch.randn(own.shape, generator=generator, dtype=torch.float64)
            for name, own in trained_parameters(self.base).items()
        }
        scale = self.size / float(flat(drawn).norm())
        return {name: own * scale for name, own in drawn.items()}

    def take(
        self, planned: PlannedStep, batch: tuple[Tensor, Tensor], tangents: tuple[Tensors, Tensors]
    ) -> tuple[float, tuple[Tensors, Tensors]]:
        """Take a step with all trainings; return the loss, and the derivatives after it."""
        rate = self.base.learning_rate(planned.step, planned.epoch)
        removed_N = torch.from_numpy(self.removed_D[planned.datum_N])
        leaves = {n: own.detach().clone().requires_grad_() for n, own in weights(self.base)}
        share_NT = StepLoss(self.base, planned.step, *batch).shares(leaves)
        inputs = list(leaves.values())
        gradient = torch.autograd.grad(share_NT.sum(), inputs, create_graph=True)
        direct = torch.autograd.grad((share_NT.sum(1) * removed_N).sum(), inputs, retain_graph=True)
        moved = []
        for tangent, given in zip(tangents, (direct, None), strict=True):
            vector = list(tangent.values())
            product = torch.autograd.grad(gradient, inputs, vector, retain_graph=True)
            after = [own - rate * by for own, by in zip(vector, product, strict=True)]
            if given is not None:
                after = [own - rate * by for own, by in zip(after, given, strict=True)]
            moved.append(dict(zip(tangent, after, strict=True)))
        numbers = {"step": planned.step, "epoch": planned.epoch}
        for engine in (self.base, *self.changed.values()):
            engine.step(*batch, **numbers)
        self.without.weighted_step(*batch, 1 + removed_N, **numbers)
        return float(share_NT.detach().sum()), (moved[0], moved[1])

    def row(self, steps: int, loss: float, tangents: tuple[Tensors, Tensors]) -> Row:
        base_P, predicted_P = flat(dict(weights(self.base))), flat(tangents[0])
        moved_P = flat(dict(weights(self.without))) - base_P
        growth = {
            f"{size:g}": float((flat(dict(weights(own))) - base_P).norm()) / size / self.size
            for size, own in self.changed.items()
        }
        norms = float(moved_P.norm()), float(predicted_P.norm())
        cosine = float(moved_P @ predicted_P) / (norms[0] * norms[1])
        return Row(steps, loss, *norms, cosine, growth, float(flat(tangents[1]).norm()) / self.size)


def weights(engine: WeightedEngine) -> list[tuple[str, Tensor]]:
    return [(name, own.detach()) for name, own in trained_parameters(engine).items()]


def flat(tensors: Tensors) -> Tensor:
    """Return all weights in one vector, [P]."""
    return torch.cat([own.flatten() for own in tensors.values()])


def norm(engine: WeightedEngine) -> float:
    return float(flat(dict(weights(engine))).norm())


def measure(run: ReplayableRun, steps: int, sizes: Sequence[float]) -> list[Row]:
    """Return a row for each of the first steps of a run.

    Raises ``ConfigError`` unless the run is trained by plain SGD without clipping.
    """
    training = run.plan.config.training
    if not training.optimizer.plain or training.clip < 100:
        problem = f"is {training.optimizer.kind} with clip {training.clip:g}"
        raise ConfigError("training.optimizer", problem, "Wanted: plain sgd, and clip above 100")
    bench = Bench.of(run, sizes)
    walker = BackwardWalker(run, bench.base, 0, {})
    none = {name: torch.zeros_like(own) for name, own in weights(bench.base)}
    tangents, rows = (none, bench.random_change()), []
    for planned in islice(run.plan.planned_steps(0), steps):
        loss, tangents = bench.take(planned, walker.batch(planned), tangents)
        rows.append(bench.row(planned.step + 1, loss, tangents))
        print(rows[-1], flush=True)
    return rows


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.linearity", description=__doc__)
    parser.add_argument("run", help="folder or prefix of a run trained by plain SGD")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="default 50")
    text = "relative sizes of random changes, default 1e-12,1e-6"
    parser.add_argument("--sizes", default="1e-12,1e-6", metavar="LIST", help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    run = read_replayable_run(Store(arguments.run))
    sizes = [float(size) for size in arguments.sizes.split(",")]
    rows = measure(run, arguments.steps, sizes)
    if arguments.json:
        training = run.plan.config.training
        setting = {"learning_rate": training.learning_rate, "batch": training.batch}
        found = {"machine": machine(), "setting": setting, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
