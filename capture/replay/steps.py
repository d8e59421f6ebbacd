"""Replay steps of a run from the checkpoint before them, to get weights and factors in between.

A run stores one checkpoint a segment. A step follows from the checkpoint, the seed and the text.
At the end of each replayed segment the weights are compared with the checkpoint there, and replay
continues from that checkpoint. On the machine that made the run the two are bit-identical.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from torch import Tensor

from capture.config.records import RecordKind
from capture.engine.build import build_engine, restore
from capture.engine.engine import Engine
from capture.engine.left_out import batch_of
from capture.engine.observer import to_device
from capture.format import checkpoint
from capture.format.markers import Marker
from capture.gradients.factors import Factors
from capture.replay.segments import ReplayableRun, as_captured, checkpoint_difference

Weights = dict[str, Tensor]
Report = Callable[[], None]
"""Called after every step."""


@dataclass(frozen=True, eq=False)
class Update:
    """The update of some units in one step."""

    step: int
    datum_N: list[int]
    """The datum in each slot of the batch."""
    factors: Factors
    """Per-sample gradients in factored form, of the loss at ``StepReplayer.loss_positions``."""
    scale: float
    """Multiplier from gradient to shift (−lr · clip), before preconditioning."""
    preconditioner: Weights | None
    """Multiplier of each entry besides ``scale``, by unit; None: 1 everywhere."""
    carry: Weights | None
    """Part of the change that is no datum's (momentum, weight decay), by unit; None: 0."""
    before: Weights
    after: Weights


@dataclass(frozen=True, eq=False)
class StepReplayer:
    """Replays any steps of one run."""

    run: ReplayableRun
    markers: Sequence[Marker]
    """Markers of the start and of all committed segments, in order."""
    loss_positions: Literal["all", "last"] = "all"
    """Positions whose loss the factors of updates are of; training itself uses all."""

    def weights_after(self, steps: int, units: Sequence[str], report: Report) -> Weights:
        """Return copies of these parameters as they were after so many steps."""
        return next(self.weights_at([steps], units, report))[1]

    def weights_at(
        self, steps: Sequence[int], units: Sequence[str], report: Report
    ) -> Iterator[tuple[int, Weights]]:
        """Yield these parameters after each of these numbers of steps, which ascend.

        No step is taken twice, and none between a wanted step and the next checkpoint.
        """
        engine, here = self.engine(units, kinds=()), -1
        for step in steps:
            marker = self.marker_before(step)
            if marker.end_step > here:
                restore(engine, self.run.store, marker)
                here = marker.end_step
            for _ in self.advance(engine, here, step):
                report()
            here = step
            yield step, copy_weights(engine, units)

    def tensors_after(self, steps: int, report: Report = lambda: None) -> Weights:
        """Return the model after so many steps as a checkpoint holds it, without optimizer state.

        Buffers are among the tensors, and tied weights appear once.
        """
        units = self.run.plan.config.capture.units
        engine, marker = self.engine(units, kinds=()), self.marker_before(steps)
        restore(engine, self.run.store, marker)
        for _ in self.advance(engine, marker.end_step, steps):
            report()
        return checkpoint.snapshot(engine.model)

    def updates(self, steps: range, units: Sequence[str], report: Report) -> Iterator[Update]:
        """Yield the update of each of these steps, in order."""
        engine = self.engine(units, kinds=("factors",))
        marker = self.marker_before(steps.start)
        restore(engine, self.run.store, marker)
        for update in self.advance(engine, marker.end_step, steps.stop):
            if update.step in steps:
                yield update
            report()

    def num_steps(self, steps: range) -> int:
        """Return how many steps are taken to replay these: from the checkpoint before them on."""
        return steps.stop - self.marker_before(steps.start).end_step

    def marker_before(self, steps: int) -> Marker:
        return [marker for marker in self.markers if marker.end_step <= steps][-1]

    def engine(self, units: Sequence[str], kinds: Sequence[RecordKind]) -> Engine:
        """Return an engine of this run that captures these units.

        ``kinds``: empty for an engine that only trains.
        """
        config = self.run.plan.config
        captured = replace(
            config.capture,
            record="shifts",
            units=list(units),
            loss_positions=self.loss_positions,
            outliers=replace(config.capture.outliers, k=1),
        )
        plan = replace(self.run.plan, config=replace(config, capture=captured))
        return build_engine(plan, kinds)

    def advance(self, engine: Engine, first_step: int, end_step: int) -> Iterator[Update]:
        """Take steps with an engine that stands at ``first_step``, and yield their updates."""
        token_NT, target_NT = to_device(self.run.plan.corpus.train, engine.device)
        ends = {marker.end_step: marker for marker in self.markers}
        for planned in islice(self.run.plan.planned_steps(first_step), end_step - first_step):
            batch = batch_of(self.run.plan, token_NT, target_NT, planned)
            before = copy_weights(engine, engine.units)
            with as_captured(self.run):
                step = engine.step(*batch, step=planned.step, epoch=planned.epoch)
            yield Update(
                planned.step,
                planned.datum_N.tolist(),
                step.last.factors if step.last else step.factors,
                step.scale,
                step.preconditioner,
                step.carry,
                before,
                copy_weights(engine, engine.units),
            )
            if planned.step + 1 in ends:
                self.continue_from_checkpoint(engine, ends[planned.step + 1])

    def continue_from_checkpoint(self, engine: Engine, marker: Marker) -> None:
        """Load the checkpoint just reached; raises ``ReplayError`` if the weights differ."""
        wanted = checkpoint.read_checkpoint(self.run.store, marker.end_step, marker)
        checkpoint_difference(self.run, engine.model, wanted, marker.end_step)
        where = f"{self.run.store.uri}/{checkpoint.key_of(marker.end_step)}"
        engine.restore(wanted, marker.end_step, where)


def copy_weights(engine: Engine, units: Iterable[str]) -> Weights:
    parameters = dict(engine.model.named_parameters())
    return {name: parameters[name].detach().clone() for name in units}
