"""The adjoint through one update: from the state after it to gradient and state before it.

With g the gradient of the batch, θ, m and v the state before a step, and θ', m', v' after it, an
update of ``torch.optim`` as ``capture.optim.optimizer`` states it is

    ĝ = c g,   c = min(1, C / (‖g‖ + 1e-6))          (norm clipping over the whole model)
    u = ĝ + l2 · θ                                     (SGD and Adam; l2 = 0 for AdamW)
    SGD:   m' = μ m + u;   θ' = θ − lr · d  with d = m', or u + μ m' (Nesterov), or u (μ = 0)
    Adam:  m' = β₁ m + (1 − β₁) u;   v' = β₂ v + (1 − β₂) u²
           θ' = kept · θ − a m' / (√v' / r + ε),  a = lr / (1 − β₁ᵗ),  r = √(1 − β₂ᵗ)

The functions below are the transposed derivatives of these lines, in reverse order. The derivative
of c must be part of them: the whole gradient is scaled by c, and with c held constant the adjoint
grows without bound where clipping in fact keeps training stable.

Shapes: Q query; a parameter's own axes follow.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from capture.optim.optimizer import Tensors
from capture.optim.optimizer_config import OptimizerConfig
from capture.unrolled.adjoint import Adjoint
from capture.unrolled.states import TrainingState

CLIP_EPSILON = 1e-6
"""What ``torch.nn.utils.clip_grad_norm_`` adds to the norm."""


@dataclass(frozen=True)
class UpdateSettings:
    """The numbers of one update."""

    optimizer: OptimizerConfig
    step: int
    """Number of the update, from 0."""
    learning_rate: float
    limit: float
    """Largest norm of the gradient that clipping leaves alone."""

    @property
    def l2(self) -> float:
        return 0.0 if self.optimizer.kind == "adamw" else self.optimizer.weight_decay

    @property
    def kept(self) -> float:
        decay = self.optimizer.weight_decay if self.optimizer.kind == "adamw" else 0.0
        return 1 - self.learning_rate * decay


@dataclass(frozen=True)
class Clipping:
    """Norm clipping of one gradient."""

    factor: float
    slope: float
    """Derivative of the factor by the norm, divided by the norm; 0 if nothing was clipped."""

    @classmethod
    def of(cls, gradient: Mapping[str, Tensor], limit: float) -> "Clipping":
        norm = float(torch.stack([own.norm() for own in gradient.values()]).norm())
        padded = norm + CLIP_EPSILON
        if padded <= limit:
            return cls(1.0, 0.0)
        return cls(limit / padded, -limit / padded**2 / norm)


@torch.no_grad()
def pull_back(
    settings: UpdateSettings,
    before: TrainingState,
    after: TrainingState,
    gradient: Mapping[str, Tensor],
    adjoint: Adjoint,
) -> tuple[Tensors, Adjoint]:
    """Return the adjoint of the gradient, and that of the state before, at a fixed gradient.

    ``gradient``: of the batch's loss before clipping, of every parameter that the loss depends on;
    the optimizer leaves the others alone. ``adjoint``: of the state after the update. What the
    gradient passes on to the weights (the Hessian times the first result) is not part of the
    second.
    """
    clipping = Clipping.of(gradient, settings.limit)
    weights, moments, of_clipped = dict(adjoint.weights), dict(adjoint.moments), {}
    pull = pull_back_sgd if settings.optimizer.kind == "sgd" else pull_back_adam
    for name, own in gradient.items():
        given = own * clipping.factor
        if settings.l2:
            given = given + settings.l2 * before.weights[name]
        of_given, moments_before = pull(settings, after, name, given, adjoint)
        weight = adjoint.weights[name] * settings.kept
        weights[name] = weight.add_(of_given, alpha=settings.l2) if settings.l2 else weight
        moments |= moments_before
        of_clipped[name] = of_given
    return pull_back_clipping(clipping, gradient, of_clipped), Adjoint(weights, moments)


def pull_back_clipping(
    clipping: Clipping, gradient: Mapping[str, Tensor], of_clipped: Tensors
) -> Tensors:
    """Return the adjoint of the gradient from that of the clipped gradient; reuses the latter."""
    if not clipping.slope:
        return of_clipped
    dots = [of_clipped[name].flatten(1) @ own.flatten() for name, own in gradient.items()]
    scale_Q = clipping.slope * torch.stack(dots).sum(0)
    for name, own in gradient.items():
        along = scale_Q.view(-1, *[1] * own.dim())
        of_clipped[name].mul_(clipping.factor).addcmul_(along, own)
    return of_clipped


def pull_back_sgd(
    settings: UpdateSettings, after: TrainingState, name: str, given: Tensor, adjoint: Adjoint
) -> tuple[Tensor, Tensors]:
    """Return the adjoint of u (``given``) and those of the moments before, for SGD."""
    config = settings.optimizer
    of_direction = adjoint.weights[name] * -settings.learning_rate
    if not config.momentum:
        return of_direction, {}
    key = f"momentum_buffer/{name}"
    weight = config.momentum if config.nesterov else 1.0
    of_moment = torch.add(adjoint.moments[key], of_direction, alpha=weight)
    before = {key: of_moment * config.momentum}
    return (of_moment + of_direction if config.nesterov else of_moment), before


def pull_back_adam(
    settings: UpdateSettings, after: TrainingState, name: str, given: Tensor, adjoint: Adjoint
) -> tuple[Tensor, Tensors]:
    """Return the adjoint of u (``given``) and those of the moments before, for Adam and AdamW."""
    config, count = settings.optimizer, settings.step + 1
    first, second = f"exp_avg/{name}", f"exp_avg_sq/{name}"
    moment, square = after.moments[first], after.moments[second]
    rate = settings.learning_rate / (1 - config.beta1**count)
    correction = (1 - config.beta2**count) ** 0.5
    root = square.sqrt()
    divisor = root / correction + config.epsilon
    of_weight = adjoint.weights[name]
    of_moment = torch.addcmul(adjoint.moments[first], of_weight, rate / divisor, value=-1)
    # √v' has no derivative at v' = 0. There every gradient so far was 0, and so is m': the weight
    # does not depend on v', and u = 0 multiplies the result below.
    slope = rate * moment / (divisor.square() * root * (2 * correction))
    slope = torch.where(square == 0, torch.zeros_like(slope), slope)
    of_square = torch.addcmul(adjoint.moments[second], of_weight, slope)
    before = {first: of_moment * config.beta1, second: of_square * config.beta2}
    of_given = of_moment.mul_(1 - config.beta1)
    return of_given.addcmul_(of_square, given * (2 * (1 - config.beta2))), before
