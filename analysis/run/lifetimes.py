"""Lifetime shifts: what each gradient still contributes to the weights at the end of a run.

A gradient acts in its own step (its shift) and, through momentum, in later ones; weight decay takes
some of it back. ``capture.optim.lifetime`` derives the coefficients, by a recursion from the last
step backward. With all datums and steps, lifetime shifts and the decay of the initial weights sum
to the change of the weights (the law Lifetime).

Shapes: N datum of a step, by slot.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from analysis.run.gradients import covers
from analysis.run.names import nearest
from analysis.run.shift_tables import wanted_steps
from analysis.run.updates.applied_updates import StepUpdate, UpdateSource
from capture.errors import UnitError
from capture.format.factor_reader import dense
from capture.gradients.factors import Factor
from capture.optim.lifetime import Coefficient, Persistence


@dataclass(frozen=True, eq=False)
class LifetimeShifts:
    """Lifetime shifts of one unit, of all datums of one step."""

    step: int
    datums: list[int]
    """Datums by slot in the batch."""
    shift_N: np.ndarray
    """float32, [N, *shape of the unit], in units of the weight."""


@dataclass(eq=False)
class Lifetimes:
    """Queries on lifetime shifts."""

    source: UpdateSource
    kept: dict[tuple[str, int], Coefficient] = field(default_factory=dict)
    """The last coefficient of ``coefficient``; at most one is held."""
    followed: dict[tuple[str, int], Coefficient] = field(default_factory=dict)
    """Multipliers of ``own_coefficient``, of the last unit and segment."""

    def shift(self, step: int, datum: int, unit: str) -> np.ndarray:
        """Return the lifetime shift of a datum's gradient in a step, float32."""
        found = self.source.gradients.read(unit, [(step, datum)])[0]
        return lifetime_shift(found.uses, found.shape, self.coefficient(unit, step)).numpy()

    def own_shift(self, step: int, datum: int, unit: str) -> np.ndarray:
        """Return a datum's shifts in a step alone, float32, of a run of a custom training loop.

        Such a run does not store preconditioners, and cannot be replayed. Raises ``RunError`` if
        they do not follow from factors, checkpoints and the settings in ``run.yaml``.
        """
        found = self.source.gradients.read(unit, [(step, datum)])[0]
        if not found.preconditioned:
            return self.source.gradients.shift(step, datum, unit)
        return lifetime_shift(found.uses, found.shape, self.own_coefficient(unit, step)).numpy()

    def own_coefficient(self, unit: str, step: int) -> Coefficient:
        """Return the multiplier from a gradient to its shift, from the optimizer's own steps."""
        if (unit, step) not in self.followed:
            source = self.source
            segment = next(each for each in source.committed.segments if step < each.end_step)
            self.followed = {
                (unit, update.step): Persistence().of_gradient(update.applied)
                for update in source.follow(unit, segment)
            }
        return self.followed[unit, step]

    def shifts(self, unit: str, steps: range | None) -> Iterator[LifetimeShifts]:
        """Return the lifetime shifts of all datums of these steps (None: all), last step first."""
        source = self.source
        self.require_unit(unit)
        done = source.committed.steps_done
        wanted = range(done) if steps is None else steps
        return self.of_steps(unit, wanted_steps(source.gradients.uri, wanted, done))

    def of_steps(self, unit: str, steps: range) -> Iterator[LifetimeShifts]:
        source, factors = self.source, self.source.gradients.factors
        stored = all(any(covers(shard, step) for shard in factors) for step in steps)
        # Replayed factors are those of the loss of all positions.
        replay = not stored and source.config.capture.loss_positions == "all"
        for update, after in self.backward(unit, steps.start, replay=replay):
            if update.step in steps:
                coefficient = after.of_gradient(update.applied)
                yield self.of_step(unit, update, coefficient)

    def of_step(self, unit: str, update: StepUpdate, coefficient: Coefficient) -> LifetimeShifts:
        """Return the lifetime shifts of one step."""
        gradients, uses, found = self.source.gradients, update.uses, []
        shape = gradients.layout.shapes[unit]
        for slot, datum in enumerate(update.datum_N):
            own = (
                gradients.read_one(unit, update.step, slot, datum).uses
                if uses is None
                else [use.map_tensors(lambda x, n=slot: x[n : n + 1]) for use in uses]
            )
            found.append(lifetime_shift(own, shape, coefficient))
        return LifetimeShifts(update.step, list(update.datum_N), torch.stack(found).numpy())

    def initial_decay(self, unit: str) -> np.ndarray:
        """Return the change of the unit's weights by decay of its initial weights, float32."""
        self.require_unit(unit)
        initial = self.source.committed.checkpoint(0)[unit].double()
        left: Coefficient = 1.0
        config = self.source.settings_of(unit).optimizer
        for update, after in self.backward(unit, 0, moments=config.kind == "adam"):
            left = after.weight if update.idle else after.before(update.applied).weight
        return ((left - 1) * initial).float().numpy()

    def coefficient(self, unit: str, step: int) -> Coefficient:
        """Return the multiplier from a gradient in a step to its lifetime shift."""
        if (unit, step) not in self.kept:
            self.kept.clear()
            for update, after in self.backward(unit, step):
                if update.step == step:
                    self.kept[unit, step] = after.of_gradient(update.applied)
        return self.kept[unit, step]

    def backward(
        self, unit: str, first_step: int, *, replay: bool = False, moments: bool = True
    ) -> Iterator[tuple[StepUpdate, Persistence]]:
        """Yield each update, from the last to ``first_step``, and the persistence after it.

        ``replay``: replay the steps in any case, to get their factors. ``moments``: whether
        preconditioners matter; without L2 decay, the persistence of a weight needs none.
        """
        source, optimizer = self.source, self.source.settings_of(unit).optimizer
        if source.config.run.loop == "own":
            updates = source.followed_updates(unit, first_step)
        elif replay or (optimizer.kind != "sgd" and moments):
            updates = source.replayed_updates(unit, first_step)
        else:
            updates = source.updates_from_table(unit, first_step)
        after = Persistence()
        for update in updates:
            yield update, after
            if not update.idle:
                after = after.before(update.applied)

    def require_unit(self, unit: str) -> None:
        """Raise ``UnitError`` for a unit that was not captured."""
        layout = self.source.gradients.layout
        if unit not in layout.shapes:
            raise UnitError(unit, "was not captured", nearest(unit, layout.names))


def lifetime_shift(uses: list[Factor], shape: tuple[int, ...], by: Coefficient) -> Tensor:
    """Return a datum's gradient times a coefficient, float32; a number multiplies as in capture."""
    if isinstance(by, Tensor):
        return (dense(uses, shape).double() * by).float()
    return dense(uses, shape, by)
