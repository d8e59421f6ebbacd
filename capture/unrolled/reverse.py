"""Differentiate through training: one sweep over its steps, from the last to the first.

Every (datum, position) of a step has a weight w_it that multiplies its share of the loss; as
trained, all are 1. With λ the adjoint of the state after a step (the derivative of a query by it),
and u the adjoint of the step's gradient g = Σ w_it ∇ℓ_it (``pullback``),

    ∂query/∂w_it = ⟨∇ℓ_it, u⟩          (the influence of datum i by the target at position t)
    λ of the weights before = λ through the update + H u,   H the Hessian of the step's loss.

Both are derivatives of ⟨g, u⟩, by w and by the weights, so one more backward pass through the graph
of the gradient gives all of them (Pearlmutter 1994). The graph is built once per step for all
queries. Steps with several micro-batches compute the gradient first, then one micro-batch's graph
at a time.

The same sweep through weights, moments and clipping: Maclaurin et al. 2015 ("Gradient-based
hyperparameter optimization through reversible learning"), Engstrom et al. 2025 ("Optimizing ML
training with metagradient descent", MAGIC of Ilyas & Engstrom 2025).

Shapes: Q query, N slot, T token.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from capture.device import deterministic
from capture.errors import InfluenceError
from capture.format.markers import Marker
from capture.optim.optimizer import Tensors
from capture.replay.segments import ReplayableRun
from capture.unrolled.adjoint import Adjoint
from capture.unrolled.pullback import UpdateSettings, pull_back
from capture.unrolled.states import MAX_BYTES, BackwardStep, Report, backward_steps
from capture.unrolled.step_loss import StepLoss


@dataclass(frozen=True, eq=False)
class StepInfluence:
    """Influences of one step's batch on the queries."""

    step: int
    datum_N: np.ndarray
    """Datum by slot."""
    influence_QNT: np.ndarray
    """∂query/∂w_it: how much the query rises, to first order, per unit of weight of the loss of the
    target at position t of slot i's datum, in this step alone; float64."""
    adjoint_norm_Q: np.ndarray
    """‖∂query/∂weights before the step‖, float64."""
    adjoint: Adjoint
    """Adjoint of the state before the step, from which a sweep can begin again."""


def unroll(
    run: ReplayableRun,
    markers: Sequence[Marker],
    adjoint: Adjoint,
    steps: range,
    *,
    max_bytes: int = MAX_BYTES,
    report: Report = lambda: None,
) -> Iterator[StepInfluence]:
    """Yield the influences of the given steps on queries, last step first.

    ``adjoint``: of the state after the last of these steps; ``Adjoint.at_end`` for the end of
    training, or that of an earlier ``StepInfluence`` to go on from there. It stays unchanged.
    ``max_bytes``: bound on the memory for replayed states.

    Raises ``InfluenceError``, naming the step, if the adjoint is no longer finite, and what
    ``backward_steps`` raises.
    """
    passed = backward_steps(run, markers, steps, max_bytes=max_bytes, report=report)
    yield from sweep(passed, adjoint)


def sweep(steps: Iterable[BackwardStep], adjoint: Adjoint) -> Iterator[StepInfluence]:
    """Like ``unroll``, over steps that are given, last first."""
    for step in steps:
        with deterministic():
            influence_QNT, adjoint = pull_back_step(step, adjoint)
        # An infinite adjoint of a moment makes those of the step before it infinite or NaN.
        norm_Q = adjoint.norm()
        if not bool(norm_Q.isfinite().all() and influence_QNT.isfinite().all()):
            problem = "the derivative of the query by the weights before this step is not finite"
            remedy = "Ask about later steps only, or check the run with: ontogeny smoothness"
            raise InfluenceError(f"step {step.step}", problem, remedy)
        yield StepInfluence(
            step.step,
            step.planned.datum_N,
            influence_QNT.cpu().double().numpy(),
            norm_Q.cpu().numpy(),
            adjoint,
        )


def pull_back_step(step: BackwardStep, adjoint: Adjoint) -> tuple[Tensor, Adjoint]:
    """Return the influences of a step's batch, [Q, N, T], and the adjoint before the step."""
    training = step.loss.engine.config
    settings = UpdateSettings(training.optimizer, step.step, step.learning_rate, training.clip)
    graphs = GradientGraphs.of(step.loss, step.before.weights)
    gradient = graphs.gradient()
    of_gradient, before = pull_back(settings, step.before, step.after, gradient, adjoint)
    # pull_back has made the weights of these parameters anew, so that they can be added to.
    return graphs.pull_back(of_gradient, before.weights), before


@dataclass(frozen=True, eq=False)
class GradientGraph:
    """The gradient of one micro-batch's loss, with the graph that leads to it."""

    leaves: Tensors
    weight_NT: Tensor
    """The weights of the losses, all 1."""
    gradient: Tensors
    """By the parameters that the loss depends on."""

    @classmethod
    def of(
        cls, loss: StepLoss, weights: Mapping[str, Tensor], slots: range, *, keep: bool = True
    ) -> "GradientGraph":
        """Build it; ``keep=False`` keeps the gradient alone."""
        leaves = {name: own.detach().requires_grad_() for name, own in weights.items()}
        share_NT = loss.shares(leaves, slots)
        weight_NT = torch.ones_like(share_NT, requires_grad=True)
        total = (share_NT * weight_NT).sum()
        found = torch.autograd.grad(
            total, list(leaves.values()), create_graph=keep, allow_unused=True
        )
        used = zip(leaves, found, strict=True)
        return cls(leaves, weight_NT, {name: own for name, own in used if own is not None})

    def pull_back(self, of_gradient: Mapping[str, Tensor], into: Tensors) -> Tensor:
        """Add H u to ``into`` for each query; return ⟨∇ℓ_it, u⟩, [Q, N, T].

        ``of_gradient``: u by parameter, [Q, …].
        """
        names = list(self.gradient)
        outputs = [self.gradient[name] for name in names]
        inputs = [*(self.leaves[name] for name in names), self.weight_NT]
        count = len(next(iter(of_gradient.values())))
        found = []
        for query in range(count):
            *products, by_NT = torch.autograd.grad(
                outputs,
                inputs,
                [of_gradient[name][query] for name in names],
                retain_graph=query + 1 < count,
                allow_unused=True,
            )
            for name, product in zip(names, products, strict=True):
                if product is not None:
                    into[name][query].add_(product)
            found.append(by_NT)
        return torch.stack(found)


@dataclass(frozen=True, eq=False)
class GradientGraphs:
    """The gradient of a step's loss over its micro-batches."""

    loss: StepLoss
    weights: Tensors
    whole: GradientGraph | None
    """The graph of the whole batch, if it is one micro-batch."""

    @classmethod
    def of(cls, loss: StepLoss, weights: Tensors) -> "GradientGraphs":
        first, *others = loss.micro_batches
        return cls(loss, weights, None if others else GradientGraph.of(loss, weights, first))

    def gradient(self) -> Tensors:
        """Return the gradient of the step's loss, detached."""
        if self.whole:
            return {name: own.detach() for name, own in self.whole.gradient.items()}
        total: Tensors = {}
        for slots in self.loss.micro_batches:
            part = GradientGraph.of(self.loss, self.weights, slots, keep=False)
            for name, own in part.gradient.items():
                total[name] = total[name] + own if name in total else own
        return total

    def pull_back(self, of_gradient: Mapping[str, Tensor], into: Tensors) -> Tensor:
        """Like ``GradientGraph.pull_back``, for the whole batch."""
        if self.whole:
            return self.whole.pull_back(of_gradient, into)
        parts = [
            GradientGraph.of(self.loss, self.weights, slots).pull_back(of_gradient, into)
            for slots in self.loss.micro_batches
        ]
        return torch.cat(parts, 1)
