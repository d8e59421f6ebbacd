"""Predictions of retrainings by unrolled influence, for any number of queries.

With r_i the change of the weight of datum i's loss, the change of the weights at the end of
training is, to first order, that of a forward derivative through all steps. Its inner product with
a query's gradient is Σ_i r_i · (unrolled influence of datum i), so one derivative for each
retraining takes the place of one sweep for each query. The update is that of
``capture.unrolled.pullback``, for AdamW.

Shapes: M retraining, N slot, D datum; a parameter's own axes follow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from analysis.run.run import Run
from capture.engine.build import build_engine, restore
from capture.format.chain import require_start
from capture.optim.optimizer import Tensors
from capture.unrolled.pullback import Clipping
from capture.unrolled.states import MAX_BYTES, BackwardStep, BackwardWalker, state_of


@dataclass(eq=False)
class Tangent:
    """Derivative of the training state by a change of the datums' weights."""

    change_D: np.ndarray
    weights: Tensors
    first: Tensors
    """Derivative of Adam's first moments."""
    second: Tensors

    @classmethod
    def zero(cls, change_D: np.ndarray, weights: Tensors) -> "Tangent":
        parts = [{name: torch.zeros_like(own) for name, own in weights.items()} for _ in range(3)]
        return cls(change_D, *parts)

    def pass_on(self, step: BackwardStep, direct: Tensors, curved: Tensors) -> None:
        """Take the derivative through a step.

        ``direct``: Σ r_i ∇(share of datum i); ``curved``: Hessian times ``weights``.
        """
        training = step.loss.engine.config
        config, count = training.optimizer, step.step + 1
        assert step.graph is not None
        gradient = {name: own.detach() for name, own in step.graph.gradient.items()}
        clipping = Clipping.of(gradient, training.clip)
        change = {name: direct[name] + curved[name] for name in gradient}
        along = sum(float((gradient[name] * own).sum()) for name, own in change.items())
        rate = step.learning_rate / (1 - config.beta1**count)
        correction = (1 - config.beta2**count) ** 0.5
        kept = 1 - step.learning_rate * config.weight_decay
        for name, own in change.items():
            given = clipping.factor * own + clipping.slope * along * gradient[name]
            clipped = clipping.factor * gradient[name]
            first, second = self.first[name], self.second[name]
            first.mul_(config.beta1).add_(given, alpha=1 - config.beta1)
            second.mul_(config.beta2).addcmul_(clipped, given, value=2 * (1 - config.beta2))
            moment = step.after.moments[f"exp_avg/{name}"]
            root = step.after.moments[f"exp_avg_sq/{name}"].sqrt()
            divisor = root / correction + config.epsilon
            slope = moment / (divisor.square() * root * (2 * correction))
            slope = torch.where(root == 0, torch.zeros_like(slope), slope)
            self.weights[name].mul_(kept).add_(slope * second - first / divisor, alpha=rate)


def predicted_changes(run: Run, change_MD: np.ndarray) -> list[Tensors]:
    """Return the predicted change of the last weights for each change of the datums' weights."""
    tangents: list[Tangent] = []
    for step in steps_forward(run):
        if not tangents:
            tangents = [Tangent.zero(change_D, step.before.weights) for change_D in change_MD]
        assert step.graph is not None
        leaves = step.graph.leaves
        share_N = step.loss.shares(leaves).sum(1)
        for tangent in tangents:
            changed_N = torch.from_numpy(tangent.change_D[step.planned.datum_N]).to(share_N)
            direct = gradients((share_N * changed_N).sum(), leaves)
            tangent.pass_on(step, direct, hessian_times(step, tangent.weights))
    return [tangent.weights for tangent in tangents]


def gradients(value: Tensor, leaves: Tensors) -> Tensors:
    """Return the derivative of a value by each parameter; keeps the graph."""
    found = torch.autograd.grad(value, list(leaves.values()), retain_graph=True)
    return dict(zip(leaves, found, strict=True))


def hessian_times(step: BackwardStep, vector: Tensors) -> Tensors:
    """Return the Hessian of the step's loss times a vector; keeps the graph."""
    assert step.graph is not None
    gradient, leaves = step.graph.gradient, step.graph.leaves
    found = torch.autograd.grad(
        list(gradient.values()),
        list(leaves.values()),
        [vector[name] for name in gradient],
        retain_graph=True,
    )
    return dict(zip(leaves, found, strict=True))


def steps_forward(run: Run) -> Iterator[BackwardStep]:
    """Yield the steps of a run with the graphs of their gradients, first to last."""
    past = run.gradients.replayable
    engine = build_engine(past.plan, ())
    restore(engine, past.store, require_start(past.store))
    walker = BackwardWalker(past, engine, MAX_BYTES, {}, graphs=True)
    before = state_of(engine, 0)
    for planned in islice(past.plan.planned_steps(0), run.steps_done):
        made = walker.take_one(planned, before)
        after = state_of(engine, planned.step + 1)
        yield made(before, after)
        before = after


def products(changes: Sequence[Tensors], gradients_Q: Sequence[Tensors]) -> np.ndarray:
    """Return the inner product of each predicted change with each query's gradient, [M, Q]."""
    return np.array([[dot(change, own) for own in gradients_Q] for change in changes])


def dot(left: Tensors, right: Tensors) -> float:
    return sum(float((left[name].double() * right[name].double()).sum()) for name in left)
