"""Takes steps and says what each of them did: its outliers, its tallies, and the audit.

Shapes: N datum, T position, P captured parameter.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from capture.config.records import RecordKind
from capture.corpus.datums import Datums
from capture.engine.audit import discrepancies
from capture.engine.engine import Engine, Step
from capture.engine.step_plan import PlannedStep, StepPlan
from capture.errors import AuditError
from capture.format.factor_layout import FactorLayout
from capture.format.factor_tables import FactorRows, rows_of_step
from capture.gradients.dense import sum_shifts
from capture.gradients.factors import Factors
from capture.optim.optimizer import Tensors
from capture.shifts.outliers import Outliers, find_outliers, of_group
from capture.shifts.shift_buffer import ShiftBuffer
from capture.shifts.tallies import Tally, tallied_units

REMEDY = "Nothing of the open segment was stored"


@dataclass(frozen=True)
class Observation:
    """What one step did."""

    row: dict[str, object]
    """Of the table ``steps``."""
    outliers: Outliers | None = None
    """Of this worker's slots; slots are those of the whole batch."""
    factors: tuple[FactorLayout, FactorRows] | None = None
    """Of the same slots and the loss whose shifts are recorded, as they are stored."""
    preconditioner: Tensors | None = None
    """The step's: see ``Step``."""


class Observer:
    """Takes steps with the engine and says what each did; stops where shifts do not add up."""

    def __init__(self, plan: StepPlan, engine: Engine, kinds: Collection[RecordKind]) -> None:
        """``kinds``: what is recorded; with none, steps are taken and neither seen nor audited."""
        self.plan = plan
        self.engine = engine
        self.kinds = kinds
        self.layout = engine.layout
        self.slots = engine.group.slots(plan.config.training.batch)
        if kinds:
            self.buffer = ShiftBuffer(self.layout, len(self.slots), engine.device)
        self.token_NT, self.target_NT = to_device(plan.corpus.train, engine.device)
        vocabulary = len(plan.corpus.vocabulary.tokens)
        widths = tallied_units(self.layout, plan.config.capture.tally)
        tallies = "tallies" in kinds and widths
        self.tally = Tally(widths, vocabulary, engine.device, engine.group) if tallies else None

    def step(self, turn: PlannedStep) -> Observation:
        """One update, observed; adds to the tallies."""
        if not self.kinds:
            return Observation(self.row(turn, self.update(turn)[0], math.nan))
        before_P = self.layout.flatten(self.engine.weights(self.layout.names))
        step, recorded = self.update(turn)
        after_P = self.layout.flatten(self.engine.weights(self.layout.names))
        if not math.isfinite(step.loss + step.gradient_norm):
            raise divergence_error(turn, step)  # not a number is not among the largest
        outliers = None
        if "outliers" in self.kinds:
            config = self.plan.config.capture.outliers
            outliers, total_P = find_outliers(
                self.buffer, recorded, step.scale, config, step.preconditioner
            )
            outliers = of_group(outliers, config, self.engine.group, self.slots.start)
        else:
            total_P = sum_shifts(recorded, self.layout, step.scale, step.preconditioner)
        self.engine.group.all_reduce([total_P])
        error = self.audit(turn, step, total_P, before_P, after_P)
        factors = self.factors(turn, step, recorded) if "factors" in self.kinds else None
        row = self.row(turn, step, error)
        return Observation(row, outliers, factors, step.preconditioner)

    def factors(
        self, turn: PlannedStep, step: Step, recorded: Factors
    ) -> tuple[FactorLayout, FactorRows]:
        precision = self.plan.config.capture.factors.precision
        return rows_of_step(
            turn.step,
            turn.datum_N[self.slots.start : self.slots.stop],
            recorded,
            step.scale,
            precision,
            first_slot=self.slots.start,
            preconditioned=step.preconditioner is not None,
        )

    def row(self, turn: PlannedStep, step: Step, audit_error: float) -> dict[str, object]:
        """Of the table ``steps``; an ``audit_error`` that is not a number: not audited."""
        return {
            "step": turn.step,
            "epoch": turn.epoch,
            "batch": turn.batch,
            "learning_rate": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "clip": step.clip,
            "loss": step.loss,
            "audit_error": audit_error,
            "datums": turn.datum_N,
        }

    def update(self, turn: PlannedStep) -> tuple[Step, Factors]:
        """The step itself, and the factors of the loss whose shifts are recorded; tallied."""
        datum_N = torch.from_numpy(turn.datum_N).to(self.engine.device)
        token_NT, target_NT = self.token_NT[datum_N], self.target_NT[datum_N]
        widths = self.tally.widths if self.tally else ()
        weights = {name: own.clone() for name, own in self.engine.weights(widths).items()}
        step = self.engine.step(token_NT, target_NT, step=turn.step, epoch=turn.epoch)
        recorded = step.last.factors if step.last else step.factors
        if self.tally:
            of_sgd = -step.learning_rate * step.clip  # whatever the optimizer makes of it
            own = slice(self.slots.start, self.slots.stop)
            self.tally.add(recorded, weights, of_sgd, token_NT[own], target_NT[own])
        return step, recorded

    def audit(
        self, turn: PlannedStep, step: Step, total_P: Tensor, before_P: Tensor, after_P: Tensor
    ) -> float:
        """The step's audit error; raises ``AuditError`` above the tolerance or without a number."""
        training, group = self.plan.config.training, self.engine.group
        found = discrepancies(step, self.layout, total_P, before_P, after_P, training, group)
        error = max(each.error for each in found)
        allowed = self.plan.config.capture.audit_tolerance
        if not all(each.unexplained <= allowed for each in found):
            if not math.isfinite(after_P.norm()):
                raise divergence_error(turn, step)
            problem = f"shifts miss the applied change by {error:.2e} of it, allowed: {allowed:.0e}"
            raise AuditError(f"step {turn.step}", problem, REMEDY)
        return error


def divergence_error(turn: PlannedStep, step: Step) -> AuditError:
    problem = f"training has diverged (loss {step.loss:g}, weights out of range)"
    return AuditError(f"step {turn.step}", problem, REMEDY)


def to_device(datums: Datums, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets, [N, T] of int64."""
    token_NT = torch.from_numpy(datums.token_NT).long()
    return token_NT.to(device), torch.from_numpy(datums.target_NT).long().to(device)
