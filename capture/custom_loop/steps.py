"""Observe one step of a custom training loop, around the call of the user's optimizer.

``before_step`` reads the gradients that the optimizer is given, their factors and the weights.
``find_shifts`` computes the shifts after it. ``after_step`` compares them with the change of
the weights and returns what is recorded.

Shapes: N datum of the step, by slot; P all captured parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from capture.config.settings import CaptureConfig
from capture.custom_loop.causes import (
    DROPPED,
    require_exact_norms,
    require_kept,
    require_seen,
    require_unchanged,
    require_zeroed,
    unexplained_change,
)
from capture.custom_loop.forward_passes import ForwardPass, StepPasses, join_passes
from capture.custom_loop.ranks.loop_state import PlainState
from capture.custom_loop.ranks.step_datums import StepDatums
from capture.custom_loop.sums import GradientSums
from capture.custom_loop.update import (
    ExpectedUpdate,
    given_gradient,
    scale_of_fused_optimizer,
)
from capture.engine.audit import (
    Discrepancy,
    are_clearly_within,
    discrepancies,
    probed_discrepancies,
)
from capture.engine.observer import Observation
from capture.engine.probe import Probe
from capture.engine.step import Step
from capture.errors import AuditError, RunError, UnitError
from capture.format.factor_tables import rows_of_step
from capture.gradients.dense import sum_shifts
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.gradients.memo import Memo
from capture.optim.config import TrainingConfig
from capture.process_group import SINGLE_PROCESS, Group
from capture.shifts.outliers import Outliers, find_outliers, keep_of_worker
from capture.shifts.shift_buffer import ShiftBuffer

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
    grads: dict[str, Tensor]
    """Gradients by unit; copies, because torch's optimizers may change them in position."""
    before_P: Tensor
    """Weights before the update."""
    clip: float
    """Factor by which the loop has multiplied the gradients since the backward pass."""
    gradient_norm: float
    """Norm over all trained parameters, before that multiplication."""
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
    grads = {name: given_gradient(unit, pending_scale) for name, unit in units.items()}
    training = rounding_settings(passes)
    sums = GradientSums.of(grads, factors, layout, training, probe)
    clip = sums.multiplier(factors, layout, training) if num_ranks == 1 else 1.0
    norm = state.gradient_norm() / pending_scale
    if not math.isfinite(clip + norm):
        raise divergence_error(position)
    return StepInputs(
        expected=ExpectedUpdate.of(optimizer, units),
        factors=factors,
        grads=grads,
        before_P=before_P,
        clip=clip,
        gradient_norm=norm / abs(clip) if clip else 0.0,
        loss=total_loss(passes) / loss_scale,
        training=training,
        used=frozenset(used),
        sums=sums,
    )


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


@dataclass(frozen=True)
class FoundShifts:
    """The shifts of this rank's datums, after the optimizer has updated the weights."""

    step: Step
    outliers: Outliers | None
    """None if they are not recorded."""
    total_Q: Tensor
    """Sum of the shifts over this rank's datums; with a probe, what is seen of it before the
    preconditioner."""


def find_shifts(
    before: StepInputs, capture: CaptureConfig, buffer: ShiftBuffer | None
) -> FoundShifts:
    """Return the shifts of a step; call this after the optimizer has updated its state.

    ``buffer``: None if no outliers are recorded.
    """
    parts = before.expected.split(before.clip)
    step = Step(
        before.loss,
        before.gradient_norm,
        before.clip,
        before.expected.learning_rate,
        before.factors,
        None,
        parts.scale,
        parts.preconditioner,
        parts.carry,
        before.grads,
    )
    config, preconditioner = capture.outliers, step.preconditioner
    outliers = None
    if buffer is not None:
        outliers, _ = find_outliers(buffer, step.factors, step.scale, config, preconditioner)
    if before.sums.probe is not None:
        return FoundShifts(step, outliers, before.sums.summed_Q * step.scale)
    layout = Layout.of(before.expected.units)
    total_P = sum_shifts(step.factors, layout, step.scale, preconditioner)
    return FoundShifts(step, outliers, total_P)


def after_step(
    before: StepInputs,
    found: FoundShifts,
    datums: StepDatums,
    position: StepPosition,
    capture: CaptureConfig,
    layout: Layout,
    group: Group = SINGLE_PROCESS,
) -> tuple[Observation, Tensor]:
    """Return what is recorded of a step, and the weights after it, [P].

    ``found.total_Q`` must be the sum over all ranks of ``group``. Raises ``AuditError`` if the
    shifts and the carry do not add up to the change of the weights.
    """
    step, first_slot = found.step, datums.own.start
    training = replace(before.training, optimizer=before.expected.most_rounding)
    after_P = layout.flatten(before.expected.units)
    outliers = found.outliers
    if outliers is not None:
        outliers = keep_of_worker(outliers, capture.outliers, group, first_slot)
    errors = audited(before, found, after_P, training, capture.audit_tolerance, group)
    largest = max(each.error for each in errors)
    if not all(each.unexplained <= capture.audit_tolerance for each in errors):
        raise audit_failure(position, largest, after_P, capture.audit_tolerance, group.size)
    factors = None
    if "factors" in capture.kinds:
        factors = rows_of_step(
            position.step,
            datums.own_N,
            step.factors,
            step.scale,
            capture.factors.precision,
            packing=capture.factors.packing,
            first_slot=first_slot,
            preconditioned=step.preconditioner is not None,
        )
    return Observation(row_of(position, step, largest, datums.all_N), outliers, factors), after_P


def audited(
    before: StepInputs,
    found: FoundShifts,
    after_P: Tensor,
    training: TrainingConfig,
    allowed: float,
    group: Group,
) -> list[Discrepancy]:
    """Return the audit's comparisons, of whole sums unless a probe leaves no doubt."""
    step, probe, before_P = found.step, before.sums.probe, before.before_P
    layout, total_P = Layout.of(before.expected.units), found.total_Q
    if probe is not None:
        seen = probed_discrepancies(step, probe, found.total_Q, before_P, after_P, training)
        if are_clearly_within(allowed, seen):
            return seen
        total_P = sum_shifts(step.factors, layout, step.scale, step.preconditioner)
        group.all_reduce([total_P])
    return discrepancies(step, layout, total_P, before_P, after_P, training, group)


def row_of(
    position: StepPosition, step: Step, audit_error: float, datum_N: np.ndarray
) -> dict[str, object]:
    """Return the step's row of the table ``steps``."""
    return {
        **vars(position),
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm,
        "clip": step.clip,
        "loss": step.loss,
        "audit_error": audit_error,
        "datums": datum_N,
    }


def check_positions(outliers: Outliers, window: int | None, position: StepPosition) -> Outliers:
    """Return the outliers with positions that exist in their datum.

    ``window``: tokens per datum, or None if datums have no tokens. A datum of one token has
    position 0 only, whatever axes its activations have. Raises ``UnitError`` if activations have
    more positions than datums have tokens.
    """
    position_M = outliers.position_M
    if window == 1:
        return replace(outliers, position_M=torch.zeros_like(position_M))
    most = int(position_M.max()) if len(position_M) else 0
    if window is not None and most >= window:
        problem = f"a shift is at position {most}, but datums have {window} tokens"
        remedy = (
            "Pass all tokens of each datum, [N, T + 1], and leave padding behind the longest datum "
            "out of loss and attention"
        )
        raise UnitError(position.where, problem, remedy)
    return outliers


def audit_failure(
    position: StepPosition, error: float, after_P: Tensor, allowed: float, num_ranks: int
) -> AuditError:
    if not math.isfinite(after_P.norm()):
        return divergence_error(position)
    return AuditError(position.where, *unexplained_change(error, allowed, num_ranks))


def divergence_error(position: StepPosition) -> AuditError:
    problem = "training has diverged (gradients or weights out of range)"
    return AuditError(position.where, problem, DROPPED)
