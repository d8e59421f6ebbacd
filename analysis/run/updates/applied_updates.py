"""The updates of one unit, from the last committed step backward, as lifetime shifts need them.

There are three sources:

- ``updates_from_table``: with SGD, learning rates and clip factors suffice, and both are recorded.
- ``replayed_updates``: Adam's preconditioners come from replayed steps. Segments are replayed from
  last to first, and the coefficients of one segment are held at a time.
- ``followed_updates``: a custom training loop cannot be replayed. With stored factors, every step's
  gradient is known. The optimizer is then followed from checkpoint to checkpoint, and must arrive
  at each of them: its recorded settings are those at the start, and steps that leave the unit out
  (which the optimizer then skips) are not recorded. They are told by the checkpoint, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.run.committed import Committed
from analysis.run.custom_loop import UnitSettings
from analysis.run.gradients import Gradients
from analysis.run.scan import REMEDY
from analysis.run.updates.followed_unit import FollowedUnit, require_followed
from capture.config.settings import Config
from capture.errors import RunError
from capture.format.factor_reader import dense
from capture.format.markers import Marker
from capture.gradients.factors import Factor
from capture.optim.lifetime import AppliedUpdate
from capture.optim.update import clip_factor

COLUMNS = ["step", "learning_rate", "gradient_norm", "clip", "datums"]
FOLLOWED = {"float32": 1e-4, "float16": 2e-3}
"""Largest accepted ‖followed − checkpoint‖ / ‖change in the segment‖, by precision of factors."""
INSTEAD = "Recorded shifts (run.shifts) and gradients (run.gradient) are exact"
NO_UPDATE = AppliedUpdate(0.0, 1.0, 1.0, 1.0, old=1.0)
"""The coefficients of a step in which the optimizer leaves a unit as it is."""


@dataclass(frozen=True, eq=False)
class StepUpdate:
    """One update of a unit."""

    step: int
    datum_N: list[int]
    """Datums by slot."""
    applied: AppliedUpdate
    uses: list[Factor] | None = None
    """Factors of the whole batch, if they were replayed along the way."""
    idle: bool = False
    """Whether the optimizer skipped the unit, which had no gradient."""


@dataclass(frozen=True, eq=False)
class UpdateSource:
    """Reads the updates of a run."""

    config: Config
    committed: Committed
    gradients: Gradients
    settings: Mapping[str, UnitSettings] = field(default_factory=dict)
    """Settings of the units that differ from the configuration."""
    followed: Mapping[str, float] = field(default_factory=lambda: FOLLOWED)
    """Accepted departures of units from checkpoints, as in ``FOLLOWED``."""

    def settings_of(self, unit: str) -> UnitSettings:
        return self.settings.get(unit, UnitSettings(self.config.training.optimizer))

    def rows(self, first_step: int) -> dict[int, dict[str, Any]]:
        """Return the row of each step from ``first_step`` on; raise ``RunError`` if one lacks."""
        steps = range(first_step, self.committed.steps_done)
        shards = self.committed.shards("steps", steps)
        rows = [row for shard in shards for row in shard.table(COLUMNS).to_pylist()]
        found = {row["step"]: row for row in rows}
        for step in steps:
            if step not in found:
                problem = f"has no intact row of step {step}, which acted on later weights"
                raise RunError(self.committed.store.uri, problem, REMEDY)
        return found

    def applied(
        self,
        unit: str,
        row: dict[str, Any],
        preconditioner: Tensor | None = None,
    ) -> AppliedUpdate:
        """Describe the update of a step."""
        training, clip, own = self.config.training, row["clip"], self.settings_of(unit)
        if self.config.run.loop != "own":
            # The table rounds the factor to float32, but not the norm, from which it follows.
            exact = clip_factor(row["gradient_norm"], training.clip)
            clip = exact if np.float32(exact) == np.float32(clip) else clip
        return AppliedUpdate.of(
            own.optimizer,
            learning_rate=row["learning_rate"] * own.rate,
            clip=clip,
            step=row["step"],
            preconditioner=preconditioner,
        )

    def updates_from_table(self, unit: str, first_step: int) -> Iterator[StepUpdate]:
        """Yield the updates from the last to ``first_step``, without preconditioner."""
        rows = self.rows(first_step)
        for step in sorted(rows, reverse=True):
            yield StepUpdate(step, rows[step]["datums"], self.applied(unit, rows[step]))

    def replayed_updates(self, unit: str, first_step: int) -> Iterator[StepUpdate]:
        """Yield the updates from the last to ``first_step``; replays these steps once.

        Raises ``RunError`` if the run cannot be replayed, ``ReplayError`` if this machine does not
        arrive at the stored checkpoints.
        """
        from capture.replay.steps import StepReplayer  # loads the training engine

        rows, markers = self.rows(first_step), [self.committed.start, *self.committed.segments]
        replayer = StepReplayer(self.gradients.replayable, markers)
        for segment in self.segments_backward(first_step):
            steps = range(max(first_step, segment.first_step), segment.end_step)
            found = []
            for update in replayer.updates(steps, [unit], lambda: None):
                preconditioner = (update.preconditioner or {}).get(unit)
                applied = self.applied(unit, rows[update.step], preconditioner)
                uses = [use.map_tensors(Tensor.cpu) for use in update.factors[unit]]
                found.append(StepUpdate(update.step, update.datum_N, applied, uses))
            yield from reversed(found)

    def segments_backward(self, first_step: int) -> Iterator[Marker]:
        """Yield the segments with steps from ``first_step`` on, last first."""
        for segment in reversed(self.committed.segments):
            if segment.end_step > first_step:
                yield segment

    # --- custom training loops --------------------------------------------------------------------

    def followed_updates(self, unit: str, first_step: int) -> Iterator[StepUpdate]:
        """Yield the updates from the last to ``first_step``; reads every datum's factors.

        Raises ``RunError`` for a run without factors, and if the recorded settings do not lead
        from one checkpoint to the next.
        """
        for segment in self.segments_backward(first_step):
            found = self.follow(unit, segment)
            yield from (update for update in reversed(found) if update.step >= first_step)

    def follow(self, unit: str, segment: Marker) -> list[StepUpdate]:
        """Return the updates of a segment in order."""
        settings = self.settings_of(unit)
        require_followed(settings, unit, self.committed.store.uri)
        rows = self.rows(segment.first_step)
        steps = range(segment.first_step, segment.end_step)
        gradients = [self.batch_gradient(unit, step, rows[step]["datums"]) for step in steps]
        start = self.committed.checkpoint(segment.first_step)
        wanted = self.committed.checkpoint(segment.end_step)[unit].double()
        size = float((wanted - start[unit].double()).norm())
        # float32 weights round at every step.
        rounding = len(steps) ** 0.5 * 2.0**-24 * float(wanted.norm())
        allowed = self.followed[self.config.capture.factors.precision] * size + rounding
        missed = []
        for skips_zeros in (False, True):
            followed, found = FollowedUnit.of(settings, start, unit, steps.start), []
            for step, gradient in zip(steps, gradients, strict=True):
                row, idle = rows[step], skips_zeros and not gradient.any()
                rate = row["learning_rate"] * settings.rate
                applied = NO_UPDATE if idle else followed.step(rate, row["clip"], gradient)
                found.append(StepUpdate(step, row["datums"], applied, idle=idle))
            missed.append(float((followed.weight - wanted).norm()))
            if missed[-1] <= allowed:
                return found
        problem = (
            f"has other settings of the optimizer for {unit} than run.yaml: they lead "
            f"{min(missed) / size if size else min(missed):.1e} of its change away from the "
            f"checkpoint after step {segment.end_step - 1}"
        )
        remedy = "Shifts need one schedule for all parameter groups, constant settings, and float32"
        raise RunError(self.committed.store.uri, problem, remedy)

    def batch_gradient(self, unit: str, step: int, datum_N: Sequence[int]) -> Tensor:
        """Return the sum of a step's per-sample gradients from stored factors, float64.

        Raises ``RunError`` if the loop clipped them by value, or group by group.
        """
        total = torch.zeros(self.gradients.layout.shapes[unit], dtype=torch.float64)
        for slot, datum in enumerate(datum_N):
            found = self.gradients.read_one(unit, step, slot, datum)
            if found.multiplied:
                problem = (
                    f"multiplied the gradients of step {step} or one before by different numbers "
                    "(clipping by value or by group), which are not stored"
                )
                raise RunError(self.committed.store.uri, problem, INSTEAD)
            total += dense(found.uses, found.shape)
        return total
