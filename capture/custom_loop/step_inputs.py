"""Read gradients, factors and weights of a custom loop's step, before the optimizer updates them.

Shapes: P all captured parameters.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capture.custom_loop.causes import (
    DROPPED,
    require_exact_norms,
    require_kept,
    require_seen,
    require_unchanged,
    require_zeroed,
)
from capture.custom_loop.passes.forward_passes import ForwardPass, StepPasses, join_passes
from capture.custom_loop.passes.gradient_changes import Multiplier, undo
from capture.custom_loop.ranks.loop_state import PlainState
from capture.custom_loop.sums import GradientSums
from capture.custom_loop.update import (
    ExpectedUpdate,
    given_gradient,
    scale_of_fused_optimizer,
)
from capture.engine.probe import Probe
from capture.errors import AuditError, RunError
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.gradients.memo import Memo
from capture.optim.config import TrainingConfig

HALF_TYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class StepPosition:
    """Number of a step, of its epoch, and of the step within the epoch, all from 0."""

    step: int
    epoch: int
    batch: int

    @property
    def where(self) -> str:
        return f"step {self.step}"


@dataclass(frozen=True)
class LastWeights:
    """The weights after the last step of this recording."""

    first_step: int
    """The first step of this recording."""
    after_P: Tensor | None = None
    """None before the first step."""


@dataclass(frozen=True)
class StepInputs:
    """Gradients, factors and weights of a step, read before the update."""

    expected: ExpectedUpdate
    factors: Factors
    given: dict[str, Tensor]
    """Gradients by unit, as the optimizer is given them; copies, because torch's optimizers may
    change them in position."""
    grads: dict[str, Tensor]
    """Gradients before the loop multiplied them by different numbers (clipping by value)."""
    multipliers: dict[str, Multiplier]
    """These numbers by unit, for each entry or for all; none where they are 1."""
    before_P: Tensor
    """Weights before the update."""
    clip: float
    """Factor by which the loop has multiplied all gradients since the backward pass."""
    gradient_norm: float
    """Norm over all trained parameters, before these multiplications."""
    loss: float
    training: TrainingConfig
    """Settings that tell the audit how sums were rounded; the other fields are not used."""
    used: frozenset[str]
    """Units that a backward pass of this rank has reached."""
    sums: GradientSums
    """The gradients given to the optimizer, and the sum of those of this rank's datums."""


def before_step(
    state: PlainState,
    taken: StepPasses,
    position: StepPosition,
    last: LastWeights,
    num_ranks: int = 1,
    probe: Probe | None = None,
) -> StepInputs:
    """Read gradients, factors and weights before the optimizer updates them.

    With several ranks, whose gradients were averaged, loss and factors are those of this rank, the
    factors with its share in that average; ``ranks.joint_step`` joins what the ranks read.
    ``probe``: through which sums are seen, if not whole.

    Raises ``RunError`` if there was no backward pass or gradients were not set to zero,
    ``UnitError`` for a unit whose gradient or weights have another source than this step and the
    last, and ``AuditError`` for gradients that are not finite.
    """
    passes, step = taken.passes, position.step
    optimizer, units = state.optimizer, state.units
    state.require_reduced(position.where)
    layout, before_P = Layout.of(units), Layout.of(units).flatten(units)
    require_zeroed(step, last.first_step, has_old_gradients=taken.has_old_gradients)
    used = {name for each in passes for use in each.uses.values() for name in use.roles}
    if num_ranks == 1:
        require_seen(units, used, step)
    if not passes:
        problem = "no backward pass has reached a unit since the last optimizer step"
        raise RunError(position.where, problem, f"Call loss.backward() before it. {DROPPED}")
    require_kept(units, used, position.where)
    require_exact_norms(passes, position.where)
    require_unchanged(layout, last.after_P, before_P, step)
    pending_scale = scale_of_fused_optimizer(optimizer)
    loss_scale = taken.loss_scale * pending_scale
    factors = unscaled(join_passes(passes, units, position.where), loss_scale * num_ranks)
    given = {name: given_gradient(unit, pending_scale) for name, unit in units.items()}
    grads, multipliers = undo(given, taken.changes, pending_scale)
    training = rounding_settings(passes)
    sums = GradientSums.of(grads, factors, layout, training, probe)
    clip = sums.multiplier(factors, layout, training) if num_ranks == 1 else 1.0
    norm = norm_before(state.gradient_norm() / pending_scale, given, grads, multipliers)
    if not math.isfinite(clip + norm):
        raise divergence_error(position)
    return StepInputs(
        expected=ExpectedUpdate.of(optimizer, units),
        factors=factors,
        given=given,
        grads=grads,
        multipliers=multipliers,
        before_P=before_P,
        clip=clip,
        gradient_norm=norm / abs(clip) if clip else 0.0,
        loss=total_loss(passes) / loss_scale,
        training=training,
        used=frozenset(used),
        sums=sums,
    )


def norm_before(
    norm: float,
    given: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    changed: Collection[str],
) -> float:
    """Return the norm of all gradients before those of the units in ``changed`` were changed."""
    if not changed:
        return norm
    more = (float(grads[n].norm()) ** 2 - float(given[n].norm()) ** 2 for n in changed)
    return math.sqrt(max(0.0, norm**2 + math.fsum(more)))


def unscaled(factors: Factors, loss_scale: float) -> Factors:
    """Return the factors of the loss before a ``GradScaler`` multiplied it by ``loss_scale``."""
    if loss_scale == 1:
        return factors
    divide = Memo(lambda x: x / loss_scale)  # units that share δ keep sharing it
    return {
        name: [replace(use, delta_NTO=divide(use.delta_NTO)) for use in uses]
        for name, uses in factors.items()
    }


def total_loss(passes: Sequence[ForwardPass]) -> float:
    """Return the sum of all scalars that ``backward`` was called on.

    It is NaN if a backward pass was started otherwise, for example by ``torch.autograd.backward``.
    """
    if not all(each.has_loss for each in passes):
        return math.nan
    return math.fsum(loss.item() for each in passes for loss in each.losses)


def rounding_settings(passes: Sequence[ForwardPass]) -> TrainingConfig:
    """Describe the sums that autograd made, for the audit: their number and their precision."""
    sizes = [each.num_datums() for each in passes]
    deltas = (use.delta for each in passes for use in each.uses.values())
    has_halves = any(delta is not None and delta.dtype in HALF_TYPES for delta in deltas)
    # The config requires equal micro-batches. For unequal ones, one per datum is an upper bound.
    equal = len(set(sizes)) == 1
    return TrainingConfig(
        batch=sum(sizes),
        accumulate=len(sizes) if equal else sum(sizes),
        precision="bfloat16" if has_halves else "float32",
    )


def divergence_error(position: StepPosition) -> AuditError:
    problem = "training has diverged (gradients or weights out of range)"
    return AuditError(position.where, problem, DROPPED)
