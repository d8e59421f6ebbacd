"""Queries of a run on single gradients and shifts, computed from factors or replayed steps."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from torch import Tensor

from analysis.run.custom_loop import read_settings
from analysis.run.gradients import Gradients, StepDatum
from analysis.run.lifetimes import Lifetimes, LifetimeShifts
from analysis.run.stored_run import StoredRun
from analysis.run.updates.applied_updates import UpdateSource
from capture.errors import RunError
from capture.format.checkpoint import split_checkpoint


class GradientQueries(StoredRun):
    """The queries of ``Run`` that need gradients."""

    @cached_property
    def gradients(self) -> Gradients:
        """Queries on per-sample gradients; a step without stored factors is replayed and logged."""
        return Gradients(self.store, self.layout, self.shards("steps"), self.shards("factors"))

    @cached_property
    def _lifetimes(self) -> Lifetimes:
        settings = read_settings(self.uri, self.provenance)
        return Lifetimes(UpdateSource(self.config, self.committed, self.gradients, settings))

    @cached_property
    def _replayed_weights(self) -> dict[int, dict[str, Tensor]]:
        """The weights that were replayed last, by step."""
        return {}

    def weights(self, step: int | None = None) -> dict[str, Tensor]:
        """Return the model's weights after ``step`` updates (default: all committed), by name.

        Read from the checkpoint there; without one, the steps since the checkpoint before are
        replayed.

        Raises:
            RunError: The run has not taken so many steps, or a step that would have to be replayed
                was taken in a custom training loop.
            ReplayError: This machine does not arrive at the stored checkpoints.

        Example:
            >>> run.weights(0).keys() == run.weights(3).keys()
            True
        """
        step = self.steps_done if step is None else step
        kept = step in (0, *(segment.end_step for segment in self.segments))
        if kept or self.from_custom_loop:
            return split_checkpoint(self.committed.checkpoint(step))[0]
        if not 0 <= step <= self.steps_done:
            raise RunError(self.uri, f"has no weights after {step} steps; it has {self.steps_done}")
        if step not in self._replayed_weights:
            from capture.replay.steps import StepReplayer  # loads the training engine

            replayer = StepReplayer(self.gradients.replayable, [self.start, *self.segments])
            self._replayed_weights.clear()
            self._replayed_weights[step] = replayer.tensors_after(step)
        return self._replayed_weights[step]

    def gradient(self, step: int, datum: int, unit: str) -> np.ndarray:
        """Return a datum's gradient of its share of the batch's mean loss, before clipping.

        The gradients of a batch's datums sum to the batch's gradient. Read from stored factors;
        without these, the step is replayed from the checkpoint before it.

        Returns:
            float32, in the shape of the unit.

        Raises:
            UnitError: The unit was not captured.
            RunError: The run lacks the step, the datum was not in it, or it cannot be replayed.
            ShardError: A table is damaged.

        Example:
            >>> unit = "layers.1.linear2.weight"
            >>> run.gradient(0, run.steps()["datums"][0][0], unit).shape == run.layout.shapes[unit]
            True
        """
        return self.gradients.gradient(step, datum, unit)

    def shift(self, step: int, datum: int, unit: str, *, lifetime: bool = False) -> np.ndarray:
        """Return all shifts of a unit due to a datum, not only the recorded outliers.

        Args:
            step: Step of the gradient.
            datum: A datum of that step.
            unit: Name of the unit.
            lifetime: False: the change in this step alone, as in the record. True: what the
                gradient of this step still contributes to the weights after the last committed
                step. Momentum applies a gradient again in later steps, and weight decay takes
                part of it back. Under plain SGD the two are the same. With Adam, each call replays
                the run from the step to its end; for many steps, use ``lifetime_shifts``.

        Returns:
            float32, in the shape of the unit, in units of the weight.

        Raises:
            UnitError, RunError, ShardError: As ``gradient``. ``RunError`` also for a run of a
                custom loop without stored factors, or (under Adam or ``lifetime=True``) whose unit
                does not follow the settings of its parameter group in ``run.yaml``, because
                they changed while it trained.
            ReplayError: Replay on this machine does not arrive at the stored checkpoints.
        """
        if lifetime:
            return self._lifetimes.shift(step, datum, unit)
        if self.config.run.loop == "own":
            return self._lifetimes.own_shift(step, datum, unit)
        return self.gradients.shift(step, datum, unit)

    def lifetime_shifts(self, unit: str, steps: range | None = None) -> Iterator[LifetimeShifts]:
        """Yield the lifetime shifts of all datums in each of these steps, last step first.

        Their sum over all datums and steps, plus ``initial_decay``, is the change of the unit over
        the run, up to rounding. With Adam or without stored factors, the run is replayed once, from
        the first of the steps to its end. Memory: one segment's factors and coefficients of the
        unit, and the dense shifts of one step.

        Args:
            unit: Name of the unit.
            steps: Steps of the gradients, as a range. Default: all.

        Yields:
            LifetimeShifts: step, datums (by slot) and shift_N (float32, N times the unit's shape).

        Raises:
            UnitError, RunError, ShardError, ReplayError: As ``shift``.

        Example:
            >>> unit = "layers.1.linear2.weight"
            >>> found = sum(step.shift_N.sum(0) for step in run.lifetime_shifts(unit))
            >>> change = run.checkpoint()[unit] - run.checkpoint(0)[unit]
            >>> np.allclose(found + run.initial_decay(unit), change, atol=1e-5)
            True
        """
        return self._lifetimes.shifts(unit, steps)

    def initial_decay(self, unit: str) -> np.ndarray:
        """Return the change of a unit over the run by weight decay of its initial weights.

        float32, in the shape of the unit; 0 without weight decay. Lifetime shifts are counted as
        they stand at the end, so decay of what datums contributed is in their shifts already.
        Raises what ``lifetime_shifts`` raises.
        """
        return self._lifetimes.initial_decay(unit)

    def column(self, step: int, datum: int, unit: str, n: int) -> np.ndarray:
        """Return column n of ``gradient``, float32 [rows]; the dense gradient is not computed.

        Raises what ``gradient`` raises, and ``UnitError`` if the unit has no such column.
        """
        return self.gradients.column(step, datum, unit, n)

    def neuron_gradient(self, step: int, datum: int, unit: str, n: int) -> np.ndarray:
        """Return the gradient of neuron n, the unit's n-th input, float32.

        A column, or a row if stored as [inputs, outputs]. Raises what ``column`` raises.
        """
        return self.gradients.neuron(step, datum, unit, n)

    def inner_products(
        self, units: str | Sequence[str], one: Sequence[StepDatum], other: Sequence[StepDatum]
    ) -> np.ndarray:
        """Return inner products of per-sample gradients, summed over units.

        ``one`` and ``other`` are lists of (step, datum). Returns ⟨g, g'⟩ for each of ``one`` and
        each of ``other``, float64 [len(one), len(other)], computed without dense gradients. Raises
        what ``gradient`` raises.
        """
        return self.gradients.inner_products(units, one, other)
