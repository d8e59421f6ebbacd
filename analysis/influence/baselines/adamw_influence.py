"""AdamW-influence (Deng et al. 2026, arXiv 2605.18814), computed by dattri-llm's attributor.

The method differentiates through training as unrolled influence does, with two approximations: the
Hessian of a step's loss is replaced by N Σ_z g_z g_zᵀ, with g_z the share of datum z in the
gradient of a batch of N, and the factor of norm clipping is left out of g_z. dattri-llm's own
training pass is not used: the steps are those of the run, replayed from its checkpoints with the
recorded order and dropout masks, and handed to ``AdamWInfluenceAttributor.sweep_queries``.

Memory: one gradient of all trained parameters for each datum of a batch, and three for each query.

Shapes: Q query, D datum, N datum of a micro-batch, P flat parameter, R (step, slot) pair.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from analysis.influence.baselines.gradients import model_and_weights
from analysis.influence.queries.query import Query
from analysis.run.run import Run
from capture.errors import ConfigError

if TYPE_CHECKING:
    from capture.unrolled.states import BackwardStep

Moments = tuple[Tensor, Tensor]
"""First and second moment of a parameter."""


def adamw_influence(run: Run, queries: Sequence[Query]) -> np.ndarray:
    """Return the AdamW-influence of every datum on every query, [Q, D].

    Raises ``ConfigError`` if dattri-llm is not installed, and for a run of another optimizer than
    Adam or AdamW.
    """
    package = require_package()
    optimizer = run.config.training.optimizer
    if optimizer.kind == "sgd" or (optimizer.kind == "adam" and optimizer.weight_decay):
        problem = f"adamw-influence does not know the run's optimizer {optimizer.kind}"
        problem += " with weight decay in its gradient" if optimizer.kind == "adam" else ""
        raise ConfigError("influence.method", problem, "Use unrolled")
    _, weights = model_and_weights(run)
    training = ReplayedTraining.of(run)
    names = list(training.latest.after.weights)
    rows = [query.gradient(weights)[1] for query in queries]
    query_QP = torch.stack([torch.cat([row[name].flatten() for name in names]) for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        attributor = package.AdamWInfluenceAttributor(
            package.AttributionArguments(output_dir=folder, use_cpu=True)
        )
        score_RQ, datums, _ = attributor.sweep_queries(
            cast("Any", training),
            training,
            query_QP,
            layers=names,
            prop_steps=list(range(run.steps_done)),
            output_steps=set(range(run.steps_done)),
        )
    found_QD = np.zeros((len(queries), run.num_datums))
    np.add.at(found_QD.T, np.array(datums, np.int64), score_RQ.double().numpy())
    return found_QD


def require_package() -> Any:
    """Return dattri-llm; raise ``ConfigError`` if it is not installed."""
    try:
        import dattri_llm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        problem = f"adamw-influence needs the package dattri-llm, and {error.name} is not installed"
        remedy = "Run: pip install 'ontogeny[adamw-influence]'"
        raise ConfigError("influence.method", problem, remedy) from error
    return dattri_llm


@dataclass(eq=False)
class ReplayedTraining(Mapping[int, dict[str, Any]]):
    """A run's steps, last to first, as dattri-llm reads a trajectory.

    It is a source of gradients (``for_steps``) and a mapping from a step to the state of its
    optimizer. Each step is replayed once, so it must be asked for before the steps before it.
    """

    run: Run
    steps: "Iterator[BackwardStep]"
    latest: "BackwardStep"
    blocks: list[tuple[int, Any, list[str]]] = field(default_factory=list)
    """Gradients of the latest step, if they were asked for."""

    @classmethod
    def of(cls, run: Run) -> "ReplayedTraining":
        """Start at the last step of a run."""
        from capture.unrolled.states import backward_steps  # loads the training engine

        markers = [run.start, *run.segments]
        steps = backward_steps(run.gradients.replayable, markers, range(run.steps_done))
        return cls(run, steps, next(steps))

    def __len__(self) -> int:
        return self.run.steps_done

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.run.steps_done))

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Return learning rate, decay, and the moments before and after a step's update."""
        self.go_to(step)
        optimizer, latest = self.run.config.training.optimizer, self.latest
        return {
            "betas": (optimizer.beta1, optimizer.beta2),
            "step": step + 1,
            "lr": latest.learning_rate,
            "eps": optimizer.epsilon,
            "weight_decay": optimizer.weight_decay,
            "pre": moments_of(latest.before.moments, latest.before.weights),
            "post": moments_of(latest.after.moments, latest.after.weights),
        }

    def for_steps(self, steps: Sequence[int]) -> Iterator[tuple[int, Any, list[str]]]:
        """Yield step, gradients by datum and datums, for each micro-batch of the steps."""
        for step in steps:
            self.go_to(step)
            if not self.blocks:
                self.blocks = list(gradient_blocks(self.latest))
            yield from self.blocks

    def go_to(self, step: int) -> None:
        """Replay back to a step that has not been passed."""
        assert step <= self.latest.step, f"step {step} was passed"
        while self.latest.step > step:
            self.blocks = []
            self.latest = next(self.steps)


def moments_of(moments: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Return both moments of each parameter; 0 before the first update and without gradients."""
    return {
        name: (
            moments.get(f"exp_avg/{name}", torch.zeros_like(own)),
            moments.get(f"exp_avg_sq/{name}", torch.zeros_like(own)),
        )
        for name, own in weights.items()
    }


def gradient_blocks(step: "BackwardStep") -> Iterator[tuple[int, Any, list[str]]]:
    """Yield the gradients of every datum's share of the step's loss, by micro-batch.

    A share is the datum's part of the mean over the batch, before clipping.
    """
    package = require_package()
    leaves = {name: own.detach().requires_grad_() for name, own in step.before.weights.items()}
    for slots in step.loss.micro_batches:
        rows = [share_gradient(step, leaves, slot) for slot in slots]
        data = {
            name: torch.stack([row[number] for row in rows]) for number, name in enumerate(leaves)
        }
        block = package.Gradient(
            representation=dict.fromkeys(data, "materialized"),
            data=data,
            layer_types=dict.fromkeys(data, "nn.Linear"),
        )
        yield step.step, block, [str(step.planned.datum_N[slot]) for slot in slots]


def share_gradient(step: "BackwardStep", leaves: Mapping[str, Tensor], slot: int) -> list[Tensor]:
    """Return the flat gradient of one datum's share of the loss by each parameter, [P] each."""
    share = step.loss.shares(leaves, range(slot, slot + 1)).sum()
    found = torch.autograd.grad(share, list(leaves.values()), allow_unused=True)
    return [
        (torch.zeros_like(leaf) if own is None else own).flatten()
        for leaf, own in zip(leaves.values(), found, strict=True)
    ]
