"""Observe one step of a custom training loop, after the call of the user's optimizer.

``find_shifts`` computes the shifts from what ``step_inputs.before_step`` has read. ``after_step``
compares them with the change of the weights and returns what is recorded.

Shapes: N datum of the step, by slot; P all captured parameters.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from capture.config.settings import CaptureConfig, Config
from capture.custom_loop.causes import changed_gradients, unexplained_change
from capture.custom_loop.ranks.step_datums import StepDatums
from capture.custom_loop.step_inputs import StepInputs, StepPosition, divergence_error
from capture.engine.audit import (
    Discrepancy,
    are_clearly_within,
    discrepancies,
    probed_discrepancies,
)
from capture.engine.mapped_factors import mapped_factors
from capture.engine.observer import Observation
from capture.engine.probe import Probe
from capture.engine.step import Step
from capture.errors import AuditError, UnitError
from capture.format.factor_tables import rows_of_step
from capture.gradients.dense import sum_shifts
from capture.gradients.layout import Layout
from capture.optim.config import TrainingConfig
from capture.process_group import SINGLE_PROCESS, Group
from capture.shifts.outliers import Outliers, find_outliers, keep_of_worker
from capture.shifts.shift_buffer import ShiftBuffer


@dataclass(frozen=True)
class FoundShifts:
    """The shifts of this rank's datums, after the optimizer has updated the weights."""

    step: Step
    outliers: Outliers | None
    """None if they are not recorded."""
    total_Q: Tensor
    """Sum of the shifts over this rank's datums; with a probe, what is seen of it before the
    preconditioner."""


class StepRecords:
    """Takes the steps of one recording: probes, shift buffer, and what is recorded of each."""

    def __init__(self, config: Config, layout: Layout, window: int | None) -> None:
        """``window``: tokens per datum, if datums are described."""
        self.capture, self.seed = config.capture, config.run.seed
        self.layout, self.window = layout, window
        self.buffer: ShiftBuffer | None = None
        self.multiplied = False
        """Whether gradients were multiplied by different numbers in a step so far. Tables of
        factors say so from then on, so that a loop that clips some steps starts no table at each.
        """

    def probe(self, step: int, device: torch.device) -> Probe | None:
        """Return how a step's sums are seen; None if whole, at the edges of a segment."""
        steps = self.capture.segment_steps
        if step % steps in (0, steps - 1):
            return None
        return Probe(self.layout, self.seed, step, device)

    def find_shifts(self, inputs: StepInputs, num_datums: int, step: int) -> FoundShifts:
        """Return the shifts of a step of this rank, after the update; see ``find_shifts``."""
        if not self.capture.records("outliers", step):
            return find_shifts(inputs, self.capture, None)
        if self.buffer is None:
            self.buffer = ShiftBuffer(self.layout, num_datums, inputs.before_P.device)
        return find_shifts(inputs, self.capture, self.buffer)

    def observe(
        self,
        inputs: StepInputs,
        found: FoundShifts,
        datums: StepDatums,
        position: StepPosition,
        group: Group,
    ) -> tuple[Observation, Tensor]:
        """Return what is recorded of a step, and the weights after it; see ``after_step``."""
        self.multiplied |= bool(inputs.multipliers)
        observed, after_P = after_step(
            inputs, found, datums, position, self.capture, self.layout, group, self.multiplied
        )
        if observed.outliers is not None:
            outliers = check_positions(observed.outliers, self.window, position)
            observed = replace(observed, outliers=outliers)
        return observed, after_P


def find_shifts(
    before: StepInputs, capture: CaptureConfig, buffer: ShiftBuffer | None
) -> FoundShifts:
    """Return the shifts of a step; call this after the optimizer has updated its state.

    ``buffer``: None if no outliers are recorded.
    """
    parts = before.expected.split(before.clip, before.given, before.before_P, before.multipliers)
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
        parts.side_maps,
    )
    config, preconditioner = capture.outliers, step.preconditioner
    outliers = None
    if buffer is not None:
        factors = mapped_factors(step.factors, step.side_maps)
        outliers = find_outliers(buffer, factors, step.scale, config, preconditioner)
    total_Q = before.sums.summed_Q * step.scale  # the sum is formed once
    if before.sums.probe is None and preconditioner is not None:
        total_Q *= Layout.of(before.expected.units).flatten(preconditioner)
    return FoundShifts(step, outliers, total_Q)


def after_step(
    before: StepInputs,
    found: FoundShifts,
    datums: StepDatums,
    position: StepPosition,
    capture: CaptureConfig,
    layout: Layout,
    group: Group = SINGLE_PROCESS,
    multiplied: bool = False,
) -> tuple[Observation, Tensor]:
    """Return what is recorded of a step, and the weights after it, [P].

    ``found.total_Q`` must be the sum over all ranks of ``group``; ``multiplied``: whether tables of
    factors say that gradients were multiplied by different numbers. Raises ``AuditError`` if the
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
        allowed = capture.audit_tolerance
        raise audit_failure(before, position, largest, after_P, allowed, group.size)
    factors = None
    if capture.records("factors", position.step):
        factors = rows_of_step(
            position.step,
            datums.own_N,
            step.factors,
            step.scale,
            capture.factors.precision,
            packing=capture.factors.packing,
            first_slot=first_slot,
            preconditioned=multiplied or bool(step.preconditioner or step.side_maps),
            multiplied=multiplied,
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
    before: StepInputs,
    position: StepPosition,
    error: float,
    after_P: Tensor,
    allowed: float,
    num_ranks: int,
) -> AuditError:
    if not math.isfinite(after_P.norm()):
        return divergence_error(position)
    layout, cause = Layout.of(before.expected.units), ""
    if num_ranks == 1:
        given_P, summed_P = layout.flatten(before.grads), sum_shifts(before.factors, layout, 1.0)
        cause = changed_gradients(layout, given_P, summed_P)
    return AuditError(position.where, *unexplained_change(error, allowed, num_ranks, cause))
