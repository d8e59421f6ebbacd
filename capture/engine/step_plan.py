"""The order of a run's steps, which follows from the configuration and the corpus alone.

Shapes: N datum of a batch, by slot.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from capture.config.settings import Config
from capture.corpus.datums import Corpus
from capture.corpus.order import batches, epoch_order


@dataclass(frozen=True)
class PlannedStep:
    """One step of the plan: its numbers (all from 0), its datums, and what ends with it."""

    step: int
    """Number of the step in the run."""
    epoch: int
    batch: int
    """Number of the batch in its epoch."""
    datum_N: np.ndarray
    """Datum ids by slot."""
    evaluates: bool
    """Whether the held-out splits are evaluated after the step."""
    ends_segment: bool
    window: int
    """Number of the tally window: a range of steps over which tallies are summed."""
    ends_window: bool


@dataclass(frozen=True)
class StepPlan:
    """The steps of a run; every call returns the same ones."""

    config: Config
    corpus: Corpus

    @property
    def steps_per_epoch(self) -> int:
        return len(self.corpus.train) // self.config.training.batch

    @property
    def num_steps(self) -> int:
        return self.config.training.epochs * self.steps_per_epoch

    @property
    def window_steps(self) -> int:
        """Number of steps per tally window."""
        return self.config.capture.tally.window_steps or self.steps_per_epoch

    @property
    def evaluation_steps(self) -> int:
        """Number of steps between two evaluations of the held-out splits."""
        return self.config.training.evaluation_steps or self.steps_per_epoch

    def planned_steps(self, first_step: int) -> Iterator[PlannedStep]:
        """Yield the steps from ``first_step`` to the end of the run."""
        for epoch in range(first_step // self.steps_per_epoch, self.config.training.epochs):
            start = epoch * self.steps_per_epoch
            batch_BN = self.batches(epoch)
            for batch in range(max(0, first_step - start), self.steps_per_epoch):
                yield self.planned_step(epoch, batch, batch_BN[batch])

    def planned_step(self, epoch: int, batch: int, datum_N: np.ndarray) -> PlannedStep:
        """Return the step of one batch of an epoch."""
        done = epoch * self.steps_per_epoch + batch + 1
        ends_run = done == self.num_steps
        evaluates = ends_run or done % self.evaluation_steps == 0
        ends_segment = ends_run or done % self.config.capture.segment_steps == 0
        window, ends_window = (done - 1) // self.window_steps, done % self.window_steps == 0
        return PlannedStep(
            done - 1,
            epoch,
            batch,
            datum_N,
            evaluates=evaluates,
            ends_segment=ends_segment,
            window=window,
            ends_window=ends_window or ends_run,
        )

    def batches(self, epoch: int) -> np.ndarray:
        """Return an epoch's datum ids by batch and slot, [batches, N]."""
        config = self.config
        num_datums, phases = len(self.corpus.train), config.corpus.phases
        order = epoch_order(num_datums, seed=config.order_seed, epoch=epoch, phases=phases)
        return batches(order, config.training.batch)

    def left_out(self, planned: PlannedStep) -> np.ndarray | None:
        """Return the slots of a step whose datums an intervention leaves out; None without any."""
        intervention = self.config.intervention
        if not intervention.leave_out or planned.step not in intervention.steps(self.num_steps):
            return None
        found = np.flatnonzero(np.isin(planned.datum_N, self.left_out_ids))
        return found if len(found) else None

    @cached_property
    def left_out_ids(self) -> list[int]:
        return self.config.intervention.left_out()
