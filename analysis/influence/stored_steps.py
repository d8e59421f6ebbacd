"""Steps of training from stored factors, for path influence in runs that cannot be replayed.

The sum of a step's per-sample gradients is its gradient. From a checkpoint on, the coefficients of
each update (``analysis.run.updates``) then give weights and first moments in float64, and they must
arrive at the next checkpoint. Factors do not say which target's loss a gradient is of, so the
influence of a datum is not shared among its positions.

Memory: weights, first moments and gradient of each step of a segment, float64.

Shapes: Q query, N datum of a step (slot); a parameter's own axes follow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from analysis.influence.path_formulas import Vectors, inner
from analysis.lifetime.backward import update_source
from analysis.run.gradients import covers, read_columns
from analysis.run.run import Run
from analysis.run.scan import Shard, promising_groups
from analysis.run.updates.applied_updates import FOLLOWED, StepUpdate, UpdateSource
from analysis.run.updates.followed_unit import STATE, FollowedUnit
from capture.errors import ConfigError, RunError, ShardError
from capture.format.factor_layout import KEY, decode
from capture.format.factor_reader import DatumFactors, dense, read_row
from capture.format.markers import Marker
from capture.gradients.factored_algebra import along
from capture.optim.lifetime import AppliedUpdate

OF_ALL_STEPS = "Record factors of all steps: factors=ontogeny.FactorConfig(enabled=True)"
REPLAY_INSTEAD = "Leave out --factors, so that steps are replayed, or record with "
REPLAY_INSTEAD += 'capture.factors.enabled=true, capture.units=["*"] and capture.loss_positions=all'
DEPARTURE = 1e-2
"""Largest accepted ‖followed − checkpoint‖ / ‖change in the segment‖ of a unit. Adam divides by the
size of the gradient, so a unit whose gradient is rounding alone, such as the bias of attention's
keys, departs by 1e-3. The answer's own sum says what that amounts to."""


@dataclass(frozen=True, eq=False)
class StoredStep:
    """A step from stored factors; a ``PassedStep``."""

    step: int
    datum_N: np.ndarray
    before: Vectors
    after: Vectors
    updates: dict[str, AppliedUpdate]
    """Updates by name, without the parameters that the optimizer skipped."""
    moments: Vectors
    """First moments before the step."""
    run: Run

    def inherited(self, moment: Vectors) -> float:
        known = {name: own for name, own in self.moments.items() if name in moment}
        return sum((inner(moment[name], own) for name, own in known.items()), 0.0)

    def derivatives(self, along_Q: dict[str, Tensor]) -> np.ndarray:
        """Return the derivative of each datum's loss along directions, float64 [Q, N, 1]."""
        parts = [self.of_unit(name, direction_Q) for name, direction_Q in along_Q.items()]
        return torch.stack(parts).sum(0)[:, :, None].numpy()

    def of_unit(self, unit: str, direction_Q: Tensor) -> Tensor:
        own = [along(found.uses, direction_Q, found.shape) for found in self.factors[unit]]
        return torch.cat(own, dim=1)

    @cached_property
    def factors(self) -> dict[str, list[DatumFactors]]:
        return factors_of_step(self.run, self.step, self.datum_N.tolist())


@dataclass(frozen=True, eq=False)
class RememberedGradients(UpdateSource):
    """A source that knows the gradients of a segment's steps, because each is needed twice."""

    known: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def read_segment(self, run: Run, segment: Marker) -> None:
        """Read the factors of every step once."""
        rows = self.rows(segment.first_step)
        for step in range(segment.first_step, segment.end_step):
            for unit, datums in factors_of_step(run, step, rows[step]["datums"]).items():
                if not any(found.multiplied for found in datums):
                    own = [dense(found.uses, found.shape).double() for found in datums]
                    self.known[unit, step] = torch.stack(own).sum(0)

    def batch_gradient(self, unit: str, step: int, datum_N: Sequence[int]) -> Tensor:
        known = self.known.get((unit, step))
        return super().batch_gradient(unit, step, datum_N) if known is None else known


@dataclass(frozen=True, eq=False)
class UnitPath:
    """One unit in a segment."""

    updates: list[StepUpdate]
    weights: list[Tensor]
    """Before each step, and after the last."""
    moments: list[Tensor]
    """First moments before each step; empty without momentum."""


def stored_steps(run: Run, steps: range, max_bytes: int) -> Iterator[StoredStep]:
    """Yield the given steps of a run, last to first, from its factors.

    Raises ``RunError`` for a run without factors of all steps and parameters, or whose recorded
    settings do not lead from one checkpoint to the next, and ``ConfigError`` for a bound that is
    too low.
    """
    fixed, known = require_stored(run, steps), update_source(run)
    parts = known.config, known.committed, known.gradients, known.settings
    source = RememberedGradients(*parts, dict.fromkeys(FOLLOWED, DEPARTURE))
    for segment in source.segments_backward(steps.start):
        if segment.first_step >= steps.stop:
            continue
        require_memory(run, segment, max_bytes)
        source.read_segment(run, segment)
        paths = {unit: path_of(source, unit, segment) for unit in run.layout.names}
        source.known.clear()
        wanted = range(max(steps.start, segment.first_step), min(steps.stop, segment.end_step))
        for step in reversed(wanted):
            yield step_of(run, paths, fixed, step - segment.first_step)


def step_of(run: Run, paths: dict[str, UnitPath], fixed: Vectors, number: int) -> StoredStep:
    """Return a step by its number in the segment."""
    updates = {unit: path.updates[number] for unit, path in paths.items()}
    first = next(iter(updates.values()))
    return StoredStep(
        first.step,
        np.asarray(first.datum_N),
        fixed | {unit: path.weights[number] for unit, path in paths.items()},
        fixed | {unit: path.weights[number + 1] for unit, path in paths.items()},
        {unit: update.applied for unit, update in updates.items() if not update.idle},
        {unit: path.moments[number] for unit, path in paths.items() if path.moments},
        run,
    )


def path_of(source: UpdateSource, unit: str, segment: Marker) -> UnitPath:
    """Follow a unit through a segment (formulas: ``capture.optim.lifetime``)."""
    start = source.committed.checkpoint(segment.first_step)
    updates = source.follow(unit, segment)
    settings = source.settings_of(unit)
    rule = FollowedUnit.of(settings, start, unit, segment.first_step).rule
    weight = start[unit].double()
    moment = start.get(f"{STATE}{rule.moment}/{unit}", torch.zeros_like(weight)).double()
    weights, moments = [weight], []
    for update in updates:
        moments.append(moment)
        if not update.idle:
            gradient = source.batch_gradient(unit, update.step, update.datum_N)
            weight, moment = after_update(update.applied, weight, moment, gradient)
        weights.append(weight)
    return UnitPath(updates, weights, moments if rule.moment else [])


def after_update(
    applied: AppliedUpdate, weight: Tensor, moment: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weight and first moment after an update."""
    given = applied.clip * gradient + applied.l2 * weight
    stepped = given + applied.remembered * moment if applied.remembered else given
    moved = applied.kept * weight + applied.rate * (applied.preconditioner * stepped)
    if applied.added:
        moved = moved + applied.added * moment
    return moved, applied.old * moment + applied.new * given


def factors_of_step(run: Run, step: int, datum_N: Sequence[int]) -> dict[str, list[DatumFactors]]:
    """Return the factors of each unit and slot of a step; opens each table once.

    Raises ``RunError`` if a slot is missing, and ``ShardError`` for a damaged table.
    """
    found: dict[int, dict[str, DatumFactors]] = {}
    for shard in (shard for shard in run.shards("factors") if covers(shard, step)):
        try:
            for slot, unit, own in stored_factors(run, shard, step):
                found.setdefault(slot, {})[unit] = own
        except ValueError as error:
            problem = f"is not readable: {error}"
            raise ShardError(shard.where, problem, "Run: ontogeny verify") from error
    slots = range(len(datum_N))
    for slot in slots:
        if slot not in found:
            problem = f"has no intact factors of step {step}, slot {slot}"
            raise RunError(run.uri, problem, "Run: ontogeny verify")
    return {unit: [found[slot][unit] for slot in slots] for unit in run.layout.names}


def stored_factors(run: Run, shard: Shard, step: int) -> Iterator[tuple[int, str, DatumFactors]]:
    """Yield slot, unit and factors of a step's rows in one table; ``ValueError`` if unreadable."""
    with shard.reading() as file:
        for group in promising_groups(file.metadata, {"step": [step]}):
            stored = decode((file.metadata.metadata or {}).get(KEY, b""), run.layout.shapes)
            for unit in run.layout.names:
                rows = read_columns(shard, file, [group], stored, unit)
                rows = rows.filter(pc.equal(rows["step"], step))
                for number, slot in enumerate(rows["slot"].to_pylist()):
                    row = {name: rows[name][number] for name in rows.column_names}
                    yield slot, unit, read_row(row, stored, unit, run.layout.shapes[unit])


# --- what is needed -------------------------------------------------------------------------------


def require_stored(run: Run, steps: range) -> Vectors:
    """Return the tensors outside the captured units, float64.

    Raises ``RunError`` unless the run has factors of all these steps, of the training loss, and of
    every parameter that changed.
    """
    shards = run.shards("factors")
    lacking = [step for step in steps if not any(covers(shard, step) for shard in shards)]
    if lacking:
        problem = f"has no factors of step {lacking[0]}, from which path influence would follow"
        raise RunError(run.uri, problem, OF_ALL_STEPS if run.from_custom_loop else REPLAY_INSTEAD)
    if run.config.capture.loss_positions != "all":
        problem = "has factors of the last position's loss, and was trained on that of all"
        raise RunError(run.uri, problem, REPLAY_INSTEAD)
    first, last = run.checkpoint(0), run.checkpoint()
    names = [name for name in first if name not in run.layout.shapes and not name.startswith(STATE)]
    for name in names:
        if not torch.equal(first[name], last[name]):
            problem = f"has no factors of {name}, which training changed"
            of_all = "Record all parameters: leave out units, the patterns given to record"
            raise RunError(run.uri, problem, of_all if run.from_custom_loop else REPLAY_INSTEAD)
    return {name: first[name].double() for name in names if first[name].is_floating_point()}


def require_memory(run: Run, segment: Marker, max_bytes: int) -> None:
    """Raise ``ConfigError`` if what is held of a segment's steps needs more memory."""
    size = sum(int(np.prod(shape)) for shape in run.layout.shapes.values())
    count = segment.end_step - segment.first_step
    least = 3 * 8 * size * (count + 1)
    if least > max_bytes:
        problem = (
            f"got {max_bytes:,}, must be at least {least:,} for the {count} steps of a segment"
        )
        raise ConfigError("max_bytes", problem, "Raise --memory, or record shorter segments")
