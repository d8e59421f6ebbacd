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
from capture.replay.segments import ReplayableRun
from capture.unrolled.adjoint import Adjoint
from capture.unrolled.gradient_graph import GradientGraphs
from capture.unrolled.pullback import UpdateSettings, pull_back
from capture.unrolled.states import MAX_BYTES, BackwardStep, Report, backward_steps


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
    """‖∂query/∂weights before the step‖, float64; NaN for a query given up at a later step."""
    of_gradient: Mapping[str, Tensor]
    """Adjoint of the step's gradient by parameter, [Q, *shape]: its inner product with the gradient
    of a datum's share of the loss is the datum's influence."""
    adjoint: Adjoint
    """Adjoint of the state before the step, from which a sweep can begin again."""


def unroll(
    run: ReplayableRun,
    markers: Sequence[Marker],
    adjoint: Adjoint,
    steps: range,
    *,
    largest_norm_Q: Tensor | None = None,
    max_bytes: int = MAX_BYTES,
    report: Report = lambda: None,
) -> Iterator[StepInfluence]:
    """Yield the influences of the given steps on queries, last step first.

    ``adjoint``: of the state after the last of these steps; ``Adjoint.at_end`` for the end of
    training, or that of an earlier ``StepInfluence`` to go on from there. It stays unchanged.
    ``largest_norm_Q``: as for ``sweep``. ``max_bytes``: bound on the memory for replayed states and
    kept graphs.

    Raises what ``sweep`` and ``backward_steps`` raise.
    """
    passed = backward_steps(run, markers, steps, graphs=True, max_bytes=max_bytes, report=report)
    yield from sweep(passed, adjoint, largest_norm_Q)


def sweep(
    steps: Iterable[BackwardStep], adjoint: Adjoint, largest_norm_Q: Tensor | None = None
) -> Iterator[StepInfluence]:
    """Like ``unroll``, over steps that are given, last first.

    ``largest_norm_Q``: norm of the adjoint of each query beyond which the query is given up. Its
    adjoint is 0 from there on, its influences are 0, and its norm is NaN. The sweep ends when all
    queries are given up. By default none is; then ``InfluenceError``, naming the step, is raised if
    an adjoint is no longer finite.
    """
    given_up_Q = torch.zeros(1, dtype=torch.bool)
    if largest_norm_Q is not None:
        # The derivative of a query may be 0 from the beginning.
        given_up_Q = adjoint.is_zero() & (largest_norm_Q > 0)
    for step in steps:
        with deterministic():
            influence_QNT, of_gradient, adjoint = pull_back_step(step, adjoint)
        # An infinite adjoint of a moment makes those of the step before it infinite or NaN.
        norm_Q = adjoint.norm()
        finite_Q = norm_Q.isfinite() & influence_QNT.flatten(1).isfinite().all(1)
        if largest_norm_Q is not None:
            influence_QNT[~finite_Q] = 0
            norm_Q = norm_Q.where(finite_Q, torch.inf).masked_fill(given_up_Q, torch.nan)
            given_up_Q |= ~(norm_Q <= largest_norm_Q)
            adjoint = adjoint.without(given_up_Q)
        elif not bool(finite_Q.all()):
            problem = "the derivative of the query by the weights before this step is not finite"
            remedy = "Ask about later steps only, or check the run with: ontogeny smoothness"
            raise InfluenceError(f"step {step.step}", problem, remedy)
        yield StepInfluence(
            step.step,
            step.planned.datum_N,
            influence_QNT.cpu().double().numpy(),
            norm_Q.cpu().numpy(),
            of_gradient,
            adjoint,
        )
        if largest_norm_Q is not None and bool(given_up_Q.all()):
            return


def pull_back_step(
    step: BackwardStep, adjoint: Adjoint
) -> tuple[Tensor, Mapping[str, Tensor], Adjoint]:
    """Return the influences of a step's batch, [Q, N, T], the adjoint of its gradient, and the
    adjoint before the step."""
    training = step.loss.engine.config
    settings = UpdateSettings(training.optimizer, step.step, step.learning_rate, training.clip)
    graphs = GradientGraphs.of(step.loss, step.before.weights, step.graph)
    gradient = graphs.gradient()
    of_gradient, before = pull_back(settings, step.before, step.after, gradient, adjoint)
    # pull_back has made the weights of these parameters anew, so that they can be added to.
    return graphs.pull_back(of_gradient, before.weights), of_gradient, before
