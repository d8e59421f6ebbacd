"""The pure mathematics of path influence: how a change of a query is shared among gradients.

The change of a query q over training is the sum of its changes in each step s, and that is an
integral along the line from θ_s to θ_{s+1}:

    q(θ_T) − q(θ_0) = Σ_s ⟨h_s, θ_{s+1} − θ_s⟩,    h_s = ∫₀¹ ∇q(θ_s + x (θ_{s+1} − θ_s)) dx

(as integrated gradients do for inputs: Sundararajan et al. 2017, equation 1). The mean gradient h_s
comes from Gauss-Legendre quadrature. A model with ReLUs has kinks on the line, where quadrature
converges slowly, so a small rest ε remains between the change of q in the step and ⟨h, Δθ⟩. It is
given to the smallest change of h that removes it, ε Δθ / ‖Δθ‖² (a discrete gradient: Gonzalez 1996,
"Time integration and discrete Hamiltonian systems", equation 2.10), and reported.

Each update is linear in the gradients of its own and earlier steps, if learning rates, clip factors
and preconditioners are taken as they were (symbols: ``capture.optim.lifetime``). With r the
derivative of the later sum with respect to the first moment, 0 after the last step, backward:

    k_s = rate · P ⊙ h_s + α r_{s+1}
    r_s = w · rate · P ⊙ h_s + β r_{s+1}

A datum's part is clip · ⟨k_s, its gradient⟩, weight decay's is ⟨(kept − 1) h_s + l2 · k_s, θ_s⟩,
and the moment that was there before the first step has ⟨r_0, m_0⟩. Together they are the change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from analysis.influence.queries.query import Query
from capture.optim.lifetime import AppliedUpdate, Persistence
from capture.optim.optimizer import first_moment_weight
from capture.optim.optimizer_config import OptimizerConfig

Vectors = dict[str, Tensor]
"""Parameter name → float64 tensor of its shape."""


def mean_gradient(
    query: Query, before: Mapping[str, Tensor], after: Mapping[str, Tensor], points: int
) -> Vectors:
    """Return the mean of a query's gradient along the line between two weights.

    Gauss-Legendre quadrature with so many points; exact for a query that is a polynomial of degree
    2 · points along the line.
    """
    node_K, weight_K = np.polynomial.legendre.leggauss(points)
    total: Vectors = {}
    for node, weight in zip(node_K.tolist(), weight_K.tolist(), strict=True):
        share = (1 + node) / 2
        at = {name: own.lerp(after[name], share) for name, own in before.items()}
        for name, own in query.gradient(at)[1].items():
            part = own.mul_(weight / 2)
            total[name] = total[name].add_(part) if name in total else part
    return total


def closed(gradient: Vectors, change: Vectors, wanted: float) -> tuple[Vectors, float]:
    """Return the gradient with ⟨gradient, change⟩ = wanted, and by how much it was off before.

    ``change`` of 0 leaves the gradient as it is.
    """
    rest = wanted - sum(inner(own, change[name]) for name, own in gradient.items())
    square = sum(inner(own, own) for own in change.values())
    if not square:
        return gradient, rest
    by = rest / square
    return {name: own.add(change[name], alpha=by) for name, own in gradient.items()}, rest


@dataclass(frozen=True, eq=False)
class StepParts:
    """How the change of one query is shared among the terms of one update."""

    along: Vectors
    """clip · k: a datum's influence is the inner product of this with its gradient."""
    decay: float
    """Influence of weight decay in this step."""
    moment: Vectors
    """r before the step; empty without momentum."""


def share_step(
    updates: Mapping[str, AppliedUpdate],
    weights: Mapping[str, Tensor],
    gradient: Vectors,
    moment: Vectors,
) -> StepParts:
    """Return the parts of a step: ``gradient`` is h, ``moment`` r after the step (empty: 0).

    ``updates``: coefficients of each parameter that the step updated; ``weights``: before it. The
    step leaves weight and moment of other parameters as they are.
    """
    along, decay = {}, 0.0
    before: dict[str, Any] = {name: r for name, r in moment.items() if name not in updates}
    for name, update in updates.items():
        after = Persistence(gradient[name], moment.get(name, 0.0))
        along[name] = after.of_gradient(update)
        own = after.before(update)
        if update.has_moment:
            before[name] = own.moment
        if update.l2 or update.kept != 1:
            decay += inner(own.weight - gradient[name], weights[name])
    return StepParts(along, decay, before)


def applied_updates(
    config: OptimizerConfig,
    step: int,
    learning_rate: float,
    clip: float,
    weights: Mapping[str, Tensor],
    moments_after: Mapping[str, Tensor],
) -> dict[str, AppliedUpdate]:
    """Return the coefficients of update number ``step`` (from 0) for every parameter, float64.

    ``moments_after``: the optimizer's state after the step, by ``STATE/PARAMETER``. Adam leaves out
    parameters without state: it did not update them.
    """
    plain = AppliedUpdate.of(config, learning_rate=learning_rate, clip=clip, step=step)
    if config.kind == "sgd":
        return dict.fromkeys(weights, plain)
    correction = (1 - config.beta2 ** (step + 1)) ** 0.5
    found = {}
    for name in weights:
        square = moments_after.get(f"exp_avg_sq/{name}")
        if square is not None:
            by = (square.double().sqrt() / correction + config.epsilon).reciprocal()
            found[name] = replace(plain, preconditioner=by)
    return found


def inherited_moment(
    config: OptimizerConfig, moment: Vectors, moments: Mapping[str, Tensor]
) -> float:
    """Return ⟨r, m⟩: what the first moment of a state adds to the query later."""
    if not first_moment_weight(config):
        return 0.0
    state = "momentum_buffer" if config.kind == "sgd" else "exp_avg"
    keys = {name: f"{state}/{name}" for name in moment}
    return sum(inner(moment[name], moments[key]) for name, key in keys.items() if key in moments)


def inner(one: Tensor, other: Tensor) -> float:
    """Return ⟨one, other⟩ in float64."""
    return float((one.double() * other.double()).sum())
