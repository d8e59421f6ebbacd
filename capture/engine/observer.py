"""Takes training steps and computes their records: outliers, tallies, factors and the audit.

Shapes: N datum, T position, P captured parameter.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from capture.config.records import RecordKind
from capture.corpus.datums import Datums
from capture.engine.audit import (
    are_clearly_within,
    can_be_probed,
    discrepancies,
    probed_discrepancies,
)
from capture.engine.engine import Engine
from capture.engine.left_out import batch_of
from capture.engine.probe import Probe
from capture.engine.split import UNCHECKED, DatumAlone, datum_alone, is_drawn, require_split
from capture.engine.step import Step
from capture.engine.step_plan import PlannedStep, StepPlan
from capture.errors import AuditError
from capture.format.factor_layout import FactorLayout
from capture.format.factor_tables import FactorRows, rows_of_step
from capture.gradients.dense import sum_shifts
from capture.gradients.factors import Factors
from capture.optim.optimizer import Tensors
from capture.shifts.outliers import Outliers, find_outliers, keep_of_worker
from capture.shifts.shift_buffer import ShiftBuffer
from capture.shifts.tallies import Tally, tallied_units

REMEDY = "Nothing of the open segment was stored"
"""Remedy of audit errors: a segment becomes visible only when it is complete."""


@dataclass(frozen=True)
class Observation:
    """The records of one step."""

    row: dict[str, object]
    """Row of the table ``steps``."""
    outliers: Outliers | None = None
    """Outliers of this worker's slots, numbered within the whole batch; None if not recorded."""
    factors: tuple[FactorLayout, FactorRows] | None = None
    """Factors of this worker's slots in stored form, of the loss whose shifts are recorded."""
    preconditioner: Tensors | None = None
    """Preconditioner of the step; see ``Step``."""
    unchecked: str = ""
    """What could not be checked at the step; empty if everything was, or nothing was due."""


class Observer:
    """Takes steps with an engine and returns their records; raises if shifts do not add up."""

    def __init__(self, plan: StepPlan, engine: Engine, kinds: Collection[RecordKind]) -> None:
        """``kinds``: what to record; if empty, steps are taken without capture and audit."""
        self.plan = plan
        self.engine = engine
        self.kinds = kinds
        self.layout = engine.layout
        self.slots = engine.group.slots(plan.config.training.batch)
        if "outliers" in kinds:
            self.buffer = ShiftBuffer(self.layout, len(self.slots), engine.device)
        self.token_NT, self.target_NT = to_device(plan.corpus.train, engine.device)
        self.next_NT = self.target_NT
        """Next token of every position, scored or not, for tallies."""
        if plan.corpus.train.scored is not None:
            self.next_NT = torch.from_numpy(plan.corpus.train.target_NT).long().to(engine.device)
        vocabulary = len(plan.corpus.vocabulary.tokens)
        widths = tallied_units(self.layout, plan.config.capture.tally)
        tallies = "tallies" in kinds and widths
        self.tally = Tally(widths, vocabulary, engine.device, engine.group) if tallies else None
        self.is_first = True
        """Whether the next step is the first that this observer takes."""

    def step(self, planned: PlannedStep) -> Observation:
        """Take one step and return its records; tallies are added to ``self.tally``.

        Raises ``AuditError`` if the shifts do not add up to the applied change, or if training
        diverges.
        """
        if not self.kinds:
            return Observation(self.row(planned, self.update(planned)[0], math.nan))
        before_P = self.layout.flatten(self.engine.weights(self.layout.names))
        alone, unchecked = self.datum_alone(planned)
        step, recorded = self.update(planned)
        if alone:
            require_split(self.engine, alone, recorded, self.slots.start, planned.step)
        after_P = self.layout.flatten(self.engine.weights(self.layout.names))
        if not math.isfinite(step.loss + step.gradient_norm):
            raise divergence_error(planned, step)  # NaN shifts would never be among the largest
        outliers = None
        if self.records("outliers", planned):
            config = self.plan.config.capture.outliers
            outliers = find_outliers(self.buffer, recorded, step.scale, config, step.preconditioner)
            outliers = keep_of_worker(outliers, config, self.engine.group, self.slots.start)
        error = self.audit(planned, step, before_P, after_P)
        factors = None
        if self.records("factors", planned):
            factors = self.factors(planned, step, recorded)
        row = self.row(planned, step, error)
        return Observation(row, outliers, factors, step.preconditioner, unchecked)

    def records(self, kind: RecordKind, planned: PlannedStep) -> bool:
        """Whether this kind of record is made of a step."""
        return kind in self.kinds and not self.plan.config.capture.leaves_out(kind, planned.step)

    def datum_alone(self, planned: PlannedStep) -> tuple[DatumAlone | None, str]:
        """Return the gradient of one datum by a pass of its own, if the split is checked now.

        Checked are the first step and those that are drawn. The second value says why a check that
        is due is not possible.
        """
        is_due = self.is_first or is_drawn(self.plan.config.run.seed, planned.step)
        self.is_first = False
        if not is_due:
            return None, ""
        if reason := self.engine.split_unchecked:
            return None, f"{UNCHECKED}: {reason}"
        # Unlike slot 0, a drawn slot also shows rows that are in the wrong order.
        draw = np.random.default_rng((self.plan.config.run.seed, planned.step))
        slot = int(draw.integers(self.slots.start, self.slots.stop))
        batch = batch_of(self.plan, self.token_NT, self.target_NT, planned)
        return datum_alone(self.engine, *batch, slot, planned.step), ""

    def factors(
        self, planned: PlannedStep, step: Step, recorded: Factors
    ) -> tuple[FactorLayout, FactorRows]:
        """Return the factors of this worker's slots in stored form."""
        config = self.plan.config.capture.factors
        return rows_of_step(
            planned.step,
            planned.datum_N[self.slots.start : self.slots.stop],
            recorded,
            step.scale,
            config.precision,
            packing=config.packing,
            first_slot=self.slots.start,
            preconditioned=step.preconditioner is not None,
        )

    def row(self, planned: PlannedStep, step: Step, audit_error: float) -> dict[str, object]:
        """Return a row of the table ``steps``; NaN as ``audit_error`` means not audited."""
        return {
            "step": planned.step,
            "epoch": planned.epoch,
            "batch": planned.batch,
            "learning_rate": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "clip": step.clip,
            "loss": step.loss,
            "audit_error": audit_error,
            "datums": planned.datum_N,
        }

    def update(self, planned: PlannedStep) -> tuple[Step, Factors]:
        """Take the step; return it and the factors of the loss whose shifts are recorded.

        Adds these factors to the tallies, with the weights before the step.
        """
        datum_N = torch.from_numpy(planned.datum_N).to(self.engine.device)
        token_NT, target_NT = batch_of(self.plan, self.token_NT, self.target_NT, planned)
        widths = self.tally.widths if self.tally else ()
        weights = {name: own.clone() for name, own in self.engine.weights(widths).items()}
        step = self.engine.step(token_NT, target_NT, step=planned.step, epoch=planned.epoch)
        recorded = step.last.factors if step.last else step.factors
        if self.tally:
            # Tallies measure lr · clip · gradient under every optimizer, so that they compare.
            scale = -step.learning_rate * step.clip
            own = slice(self.slots.start, self.slots.stop)
            # A perceptron has one position, the last, for a whole window of pixels.
            positions = recorded[next(iter(widths))][0].delta_NTO.shape[1]
            next_NT = self.next_NT[datum_N[own], -positions:]
            self.tally.add(recorded, weights, scale, token_NT[own, -positions:], next_NT)
        return step, recorded

    def audit(self, planned: PlannedStep, step: Step, before_P: Tensor, after_P: Tensor) -> float:
        """Return the step's audit error, the largest relative difference found.

        Raises ``AuditError`` if a difference beyond rounding exceeds the tolerance or is NaN.
        """
        training, group = self.plan.config.training, self.engine.group
        capture, allowed = self.plan.config.capture, self.plan.config.capture.audit_tolerance
        is_edge = planned.step % capture.segment_steps == 0 or planned.ends_segment
        if not is_edge and can_be_probed(step, training):
            seed = self.plan.config.run.seed
            probe = Probe(self.layout, seed, planned.step, self.engine.device)
            total_Q = probe.of_factors(step.factors, step.scale)
            group.all_reduce([total_Q])
            found = probed_discrepancies(step, probe, total_Q, before_P, after_P, training)
            if are_clearly_within(allowed, found):
                return max(each.error for each in found)
        recorded = step.last.factors if step.last else step.factors
        total_P = sum_shifts(recorded, self.layout, step.scale, step.preconditioner)
        group.all_reduce([total_P])
        found = discrepancies(step, self.layout, total_P, before_P, after_P, training, group)
        error = max(each.error for each in found)
        if not all(each.unexplained <= allowed for each in found):
            if not math.isfinite(after_P.norm()):
                raise divergence_error(planned, step)
            problem = f"shifts miss the applied change by {error:.2e} of it, allowed: {allowed:.0e}"
            raise AuditError(f"step {planned.step}", problem, REMEDY)
        return error


def divergence_error(planned: PlannedStep, step: Step) -> AuditError:
    """Return the error for a loss, gradient or weight that is not finite."""
    problem = f"training has diverged (loss {step.loss:g}, weights out of range)"
    return AuditError(f"step {planned.step}", problem, REMEDY)


def to_device(datums: Datums, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return inputs [N, T] and targets of the scored positions [N, T], int64, on the device."""
    token_NT = torch.from_numpy(datums.token_NT).long()
    return token_NT.to(device), torch.from_numpy(datums.scored_NT).long().to(device)
