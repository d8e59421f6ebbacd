"""Steps of a run taken again, from the checkpoint before them: weights and factors in between.

Only checkpoints are stored, one a segment. A step follows from them, the seed and the text, so
whatever it did can be seen again. At the end of every segment that is passed, the weights are
compared with the checkpoint there, and go on from it: on the machine that made the run they are the
same bits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from capture.config.records import RecordKind
from capture.engine.build import build_engine, restore
from capture.engine.engine import Engine
from capture.engine.observer import on_device
from capture.format import checkpoint
from capture.format.markers import Marker
from capture.gradients.factors import Factors
from capture.replay.segments import Past, as_captured, compare

Weights = dict[str, Tensor]
Report = Callable[[], None]
"""Told after every step."""


@dataclass(frozen=True, eq=False)
class Update:
    """What one step did to the units asked for."""

    step: int
    datum_N: list[int]
    """By slot."""
    factors: Factors
    """Of the training loss."""
    scale: float
    """What a gradient is multiplied by (and then by the preconditioner) to become a shift."""
    preconditioner: Weights | None
    """By unit, what an entry's shift is multiplied by besides; None: 1."""
    carry: Weights | None
    """By unit, the part of the change that is no datum's: momentum, weight decay; None: 0."""
    before: Weights
    after: Weights


@dataclass(frozen=True, eq=False)
class Retaking:
    """A run, to take steps of again."""

    past: Past
    markers: Sequence[Marker]
    """Of the start and of every committed segment, in order."""

    def weights_after(self, steps: int, units: Sequence[str], report: Report) -> Weights:
        """Copies of these parameters as they were after so many steps."""
        engine = self.engine(units, kinds=())
        marker = self.marker_before(steps)
        restore(engine, self.past.store, marker)
        for _ in self.advance(engine, marker.end_step, steps):
            report()
        return copied(engine, units)

    def updates(self, steps: range, units: Sequence[str], report: Report) -> Iterator[Update]:
        """Each of these steps in turn."""
        engine = self.engine(units, kinds=("factors",))
        marker = self.marker_before(steps.start)
        restore(engine, self.past.store, marker)
        for update in self.advance(engine, marker.end_step, steps.stop):
            if update.step in steps:
                yield update
            report()

    def num_steps(self, steps: range) -> int:
        """How many steps must be taken to see these."""
        return steps.stop - self.marker_before(steps.start).end_step

    def marker_before(self, steps: int) -> Marker:
        return [marker for marker in self.markers if marker.end_step <= steps][-1]

    def engine(self, units: Sequence[str], kinds: Sequence[RecordKind]) -> Engine:
        """An engine of this run that captures these units of the whole window's loss, or none."""
        config = self.past.plan.config
        captured = replace(
            config.capture,
            record="shifts",
            units=list(units),
            loss_positions="all",
            outliers=replace(config.capture.outliers, k=1),
        )
        plan = replace(self.past.plan, config=replace(config, capture=captured))
        return build_engine(plan, kinds)

    def advance(self, engine: Engine, first_step: int, end_step: int) -> Iterator[Update]:
        """Take steps, from wherever the engine has been put."""
        token_NT, target_NT = on_device(self.past.plan.corpus.train, engine.device)
        ends = {marker.end_step: marker for marker in self.markers}
        for turn in islice(self.past.plan.turns(first_step), end_step - first_step):
            datum_N = torch.from_numpy(turn.datum_N).to(engine.device)
            before = copied(engine, engine.units)
            with as_captured(self.past):
                step = engine.step(
                    token_NT[datum_N], target_NT[datum_N], step=turn.step, epoch=turn.epoch
                )
            yield Update(
                turn.step,
                turn.datum_N.tolist(),
                step.factors,
                step.scale,
                step.preconditioner,
                step.carry,
                before,
                copied(engine, engine.units),
            )
            if turn.step + 1 in ends:
                self.meet(engine, ends[turn.step + 1])

    def meet(self, engine: Engine, marker: Marker) -> None:
        """Go on from the checkpoint reached; raises ``ReplayError`` if the weights miss it."""
        wanted = checkpoint.read_checkpoint(self.past.store, marker.end_step, marker)
        compare(self.past, engine.model, wanted, marker.end_step)
        where = f"{self.past.store.uri}/{checkpoint.key_of(marker.end_step)}"
        engine.restore(wanted, marker.end_step, where)


def copied(engine: Engine, units: Iterable[str]) -> Weights:
    parameters = dict(engine.model.named_parameters())
    return {name: parameters[name].detach().clone() for name in units}
