"""One step of somebody's own training loop: what is known before the update, and what it did.

Before it: the gradients as the optimizer is given them, the factors that made them, the weights.
After it: what changed. In between stands the optimizer, which is not ours.

Shapes: N datum of the step, by slot; P all captured parameters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from capture.config.settings import CaptureConfig
from capture.custom_loop.loop_tape import Pass, join_passes
from capture.custom_loop.update import Coming, norm_of, rescaling
from capture.engine.audit import shortfalls
from capture.engine.engine import Step
from capture.engine.observer import Observation
from capture.errors import AuditError, RunError, UnitError
from capture.format.factor_tables import rows_of_step
from capture.gradients.dense import sum_shifts
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.optim.config import TrainingConfig
from capture.shifts.outliers import Outliers, find_outliers
from capture.shifts.shift_buffer import ShiftBuffer

DROPPED = "Nothing of the open segment is stored"
HALVES = (torch.bfloat16, torch.float16)
ONLY_MULTIPLY = (
    "Between backward and step, gradients may be multiplied (clipped, unscaled) by one number; "
    f"{DROPPED.lower()}"
)


@dataclass(frozen=True)
class Place:
    """When a step is."""

    step: int
    epoch: int
    batch: int

    @property
    def where(self) -> str:
        return f"step {self.step}"


@dataclass(frozen=True)
class Before:
    """What is known before an update."""

    coming: Coming
    factors: Factors
    grads: dict[str, Tensor]
    """By unit, copies: torch's own optimizers may change them."""
    before_P: Tensor
    clip: float
    """What gradients were multiplied by since the backward pass."""
    gradient_norm: float
    """Of all parameters that the optimizer trains, as it was before that."""
    loss: float
    training: TrainingConfig
    """As far as the audit asks: how sums were rounded."""


def look_before(
    optimizer: torch.optim.Optimizer,
    units: Mapping[str, nn.Parameter],
    passes: Sequence[Pass],
    place: Place,
) -> Before:
    """Raises ``RunError`` for a step without gradients, ``UnitError`` for a unit without one,
    ``AuditError`` for gradients out of range."""
    if not passes:
        problem = "the optimizer steps, but no backward pass has reached a unit since the last step"
        raise RunError(place.where, problem, f"Call loss.backward() before it. {DROPPED}")
    layout = Layout.of(units)
    factors = join_passes(passes, units, place.where)
    grads = {name: unit.grad.clone() for name, unit in units.items() if unit.grad is not None}
    for name in units:
        if name not in grads:
            raise UnitError(name, f"has lost its gradient before {place.where}", DROPPED)
    clip = rescaling(layout.flatten(grads), sum_shifts(factors, layout, 1.0))
    norm = norm_of(optimizer)
    if not math.isfinite(clip + norm):
        raise diverged(place)
    return Before(
        coming=Coming.of(optimizer, units),
        factors=factors,
        grads=grads,
        before_P=layout.flatten(units),
        clip=clip,
        gradient_norm=norm / abs(clip) if clip else 0.0,
        loss=loss_of(passes),
        training=roundings_of(passes),
    )


def loss_of(passes: Sequence[Pass]) -> float:
    """The sum of what ``backward`` was called on; not a number where a pass did not tell."""
    if not all(one.losses for one in passes):
        return math.nan
    return math.fsum(loss.item() for one in passes for loss in one.losses)


def roundings_of(passes: Sequence[Pass]) -> TrainingConfig:
    """Of the sums that autograd made: how many, of which precision."""
    sizes = [one.num_datums() for one in passes]
    deltas = (use.delta for one in passes for use in one.uses.values())
    halves = any(delta is not None and delta.dtype in HALVES for delta in deltas)
    equal = len(set(sizes)) == 1
    return TrainingConfig(
        batch=sum(sizes),
        accumulate=len(sizes) if equal else sum(sizes),
        precision="bfloat16" if halves else "float32",
    )


def look_after(
    before: Before,
    datum_N: np.ndarray,
    place: Place,
    capture: CaptureConfig,
    buffer: ShiftBuffer,
) -> Observation:
    """What the update did; raises ``AuditError`` where shifts do not add up to it."""
    coming, layout = before.coming, buffer.layout
    parts = coming.taken(before.clip)
    step = Step(
        before.loss,
        before.gradient_norm,
        before.clip,
        coming.learning_rate,
        before.factors,
        None,
        parts.scale,
        parts.preconditioner,
        parts.carry,
        before.grads,
    )
    outliers, total_P = find_outliers(
        buffer, step.factors, step.scale, capture.outliers, step.preconditioner
    )
    training = replace(before.training, optimizer=coming.rounded_most)
    after_P = layout.flatten(coming.units)
    found = shortfalls(step, layout, total_P, before.before_P, after_P, training)
    if not all(each.unexplained <= capture.audit_tolerance for each in found):
        raise missed(place, max(each.error for each in found), after_P, capture.audit_tolerance)
    factors = None
    if "factors" in capture.kinds:
        factors = rows_of_step(
            place.step,
            datum_N,
            step.factors,
            step.scale,
            capture.factors.precision,
            preconditioned=step.preconditioner is not None,
        )
    row = row_of(place, step, max(each.error for each in found), datum_N)
    return Observation(row, outliers, factors)


def row_of(place: Place, step: Step, audit_error: float, datum_N: np.ndarray) -> dict[str, object]:
    """Of the table ``steps``."""
    return {
        **vars(place),
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm,
        "clip": step.clip,
        "loss": step.loss,
        "audit_error": audit_error,
        "datums": datum_N,
    }


def placed(outliers: Outliers, window: int | None, place: Place) -> Outliers:
    """With positions that its datum has; a datum that is one token by itself has one.

    Raises ``UnitError`` where activations have more positions than datums have tokens.
    """
    position_M = outliers.position_M
    if window == 1:
        return replace(outliers, position_M=torch.zeros_like(position_M))
    most = int(position_M.max()) if len(position_M) else 0
    if window is not None and most >= window:
        problem = f"a shift arises at position {most}, but datums were told with {window} tokens"
        raise UnitError(place.where, problem, "Give datums as all their tokens, [N, T + 1]")
    return outliers


def missed(place: Place, error: float, after_P: Tensor, allowed: float) -> AuditError:
    if not math.isfinite(after_P.norm()):
        return diverged(place)
    problem = f"shifts miss the applied change by {error:.2e} of it, allowed: {allowed:.0e}"
    return AuditError(place.where, problem, ONLY_MULTIPLY)


def diverged(place: Place) -> AuditError:
    problem = "training has diverged (gradients or weights out of range)"
    return AuditError(place.where, problem, DROPPED)
