"""Read a piece of the matrix parameters × steps from a run.

Gradients come from stored factors where the run has those of every step, without replay. Otherwise
the steps are taken again from the checkpoint before them; updates and weights always are.

Shapes: N datum of a step (slot), S step, P entry of the piece.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from analysis.run.gradients import batches_of, read_columns
from analysis.run.names import nearest
from analysis.run.run import Run
from analysis.run.scan import REMEDY, Shard
from analysis.spectra.config import SpectrumConfig, What
from analysis.spectra.pieces import Piece, places
from capture.errors import RunError, ShardError, UnitError
from capture.format.factor_layout import KEY, decode
from capture.format.factor_reader import read_row
from capture.gradients.dense import write_sum
from capture.gradients.factors import Factor
from capture.gradients.layout import Layout

if TYPE_CHECKING:
    from capture.replay.steps import StepReplayer, Update

FEWEST_STEPS = 3
Report = Callable[[], None]
"""Called after every step that was read."""


def silent() -> None:
    """Report nothing."""


@dataclass(frozen=True, eq=False)
class UnitGradients:
    """Gradients of some datums of one step in one unit, in factored form."""

    step: int
    datum_N: list[int]
    unit: str
    uses: list[Factor]
    multiplier: Tensor | float = 1.0
    """Multiplier from gradient to the datum's part of the column: 1, or what makes it a shift."""


@dataclass(frozen=True, eq=False)
class StepSource:
    """Reads the columns of one matrix; can be sent to another process."""

    where: str
    what: What
    steps: range
    layout: Layout
    """Layout of the chosen units."""
    replayer: "StepReplayer | None" = None
    """None: factors are read instead."""
    factors: tuple[Shard, ...] = ()
    captured: Layout | None = None
    """Layout of all captured units, as factors are stored."""
    batches: dict[int, list[int]] = field(default_factory=dict)
    """Datums of each step, by slot."""

    def rows(self, piece: Piece, report: Report = silent) -> np.ndarray:
        """Return the columns of the matrix as rows, float32 [S, P].

        Raises what replay raises, and ``RunError`` or ``ShardError`` for missing factors.
        """
        wide = places(piece)
        row_SP = np.zeros((len(self.steps), wide[-1].stop), np.float32)
        for step, unit, flat in self.contributions(list({part.unit for part in piece}), report):
            for part, place in zip(piece, wide, strict=True):
                if part.unit == unit:
                    row_SP[self.steps.index(step), place] += flat[part.first : part.end]
        return row_SP

    def contributions(
        self, units: list[str], report: Report
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        """Yield (step, unit, flat values), which add up to the unit's column of that step."""
        if self.replayer is None or self.what == "gradients":
            for found in self.gradients(units, report):
                out_S = torch.empty(self.layout.sizes[self.layout.names.index(found.unit)])
                write_sum(found.uses, 1.0, out_S, None)
                yield found.step, found.unit, out_S.numpy()
            return
        if self.what == "weights":
            counts = [step + 1 for step in self.steps]
            for count, weights in self.replayer.weights_at(counts, units, report):
                for unit in units:
                    yield count - 1, unit, weights[unit].cpu().flatten().numpy()
            return
        for update in self.replayed(units, report):
            for unit in units:
                change = update.after[unit] - update.before[unit]
                yield update.step, unit, change.cpu().flatten().numpy()

    def gradients(self, units: list[str], report: Report = silent) -> Iterator[UnitGradients]:
        """Yield the gradients of all datums and steps in these units, in factored form."""
        if self.replayer is None:
            yield from self.stored(units, report)
            return
        for update in self.replayed(units, report):
            for unit in units:
                uses = [use.map_tensors(lambda x: x.detach().cpu()) for use in update.factors[unit]]
                multiplier = 1.0 if self.what == "gradients" else shift_multiplier(update, unit)
                yield UnitGradients(update.step, update.datum_N, unit, uses, multiplier)

    def replayed(self, units: list[str], report: Report) -> "Iterator[Update]":
        assert self.replayer is not None
        return self.replayer.updates(self.steps, units, report)

    # --- stored factors ---------------------------------------------------------------------------

    def stored(self, units: list[str], report: Report) -> Iterator[UnitGradients]:
        """Yield each datum's gradient; raise ``RunError`` unless every slot of a step is there."""
        missing = {step: set(range(len(self.batches.get(step, ())))) for step in self.steps}
        for shard in self.factors:
            for row in factor_rows(shard, self.captured or self.layout, units):
                slots = missing.get(row.step)
                if slots is None or row.slot not in slots:
                    continue  # of another step, or of a step that was written twice
                slots.discard(row.slot)
                for unit in units:
                    yield UnitGradients(row.step, [row.datum], unit, row.uses[unit])
                if not slots:
                    report()
        for step, slots in missing.items():
            if slots or not self.batches.get(step):
                problem = f"has no intact factors of step {step}, slot {min(slots, default=0)}"
                raise RunError(self.where, problem, REMEDY)


def shift_multiplier(update: "Update", unit: str) -> Tensor | float:
    """Return what makes a gradient of the unit a shift: −lr · clip · preconditioner."""
    if update.preconditioner is None:
        return update.scale
    return update.scale * update.preconditioner[unit].cpu()


@dataclass(frozen=True, eq=False)
class FactorRow:
    """The gradients of one datum in one step, by unit."""

    step: int
    slot: int
    datum: int
    uses: dict[str, list[Factor]]


def factor_rows(shard: Shard, captured: Layout, units: list[str]) -> Iterator[FactorRow]:
    """Yield the rows of a table of factors, in order; raises ``ShardError`` if it is damaged."""
    with shard.reading() as file:
        try:
            stored = decode((file.metadata.metadata or {}).get(KEY, b""), captured.shapes)
            for group in range(file.num_row_groups):
                tables = {unit: read_columns(shard, file, [group], stored, unit) for unit in units}
                table = next(iter(tables.values()))
                keys = (table[name].to_pylist() for name in ("step", "slot", "datum"))
                for place, (step, slot, datum) in enumerate(zip(*keys, strict=True)):
                    uses = {}
                    for unit, own in tables.items():
                        row = {name: own[name][place] for name in own.column_names}
                        uses[unit] = read_row(row, stored, unit, captured.shapes[unit]).uses
                    yield FactorRow(step, slot, datum, uses)
        except ValueError as error:
            raise ShardError(shard.where, f"is not readable: {error}", REMEDY) from error


# --- what to read ---------------------------------------------------------------------------------


def step_source(run: Run, config: SpectrumConfig) -> StepSource:
    """Return what reads the matrix that is asked for.

    Raises ``UnitError`` for a pattern that no captured unit matches, ``RunError`` for steps that
    the run lacks, too few of them, or a run that can neither be replayed nor has factors.
    """
    layout, steps = chosen_layout(run, config.units), chosen_steps(run, config)
    factors = run.shards("factors", steps)
    whole_loss = run.from_custom_loop or run.config.capture.loss_positions == "all"
    covered = all(any(f.first_step <= step < f.end_step for f in factors) for step in steps)
    if config.what == "gradients" and whole_loss and factors and covered:
        batches = batches_of(run.shards("steps", steps))
        ordered = tuple(sorted(factors, key=lambda shard: shard.first_step))
        return StepSource(
            run.uri,
            config.what,
            steps,
            layout,
            factors=ordered,
            captured=run.layout,
            batches=batches,
        )
    return StepSource(run.uri, config.what, steps, layout, replayer_of(run))


def replayer_of(run: Run) -> "StepReplayer":
    """Return what takes the run's steps again; raises ``RunError`` for a run of a custom loop."""
    from capture.replay.steps import StepReplayer  # loads the training engine

    return StepReplayer(run.gradients.replayable, [run.start, *run.segments])


def chosen_layout(run: Run, patterns: tuple[str, ...]) -> Layout:
    """Return the layout of the captured units that match any of the patterns."""
    shapes = run.layout.shapes
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise UnitError(pattern, "matches no captured unit", nearest(pattern, list(shapes)))
    chosen = {
        name: shape
        for name, shape in shapes.items()
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    return Layout(chosen, run.layout.transposed & chosen.keys())


def chosen_steps(run: Run, config: SpectrumConfig) -> range:
    """Return the steps of the matrix; raise ``RunError`` if the run lacks them or has too few."""
    first, end = config.steps
    end = run.steps_done if end is None else end
    if not 0 <= first < end <= run.steps_done:
        problem = f"has no steps {first} to {end - 1}; it has {run.steps_done}"
        raise RunError(run.uri, problem, "Choose others: --steps A:B")
    steps = range(first, end, config.every)
    left = max(0, len(steps) - config.skip)
    if left < FEWEST_STEPS:
        problem = f"has {left} steps for a spectrum, which needs {FEWEST_STEPS}"
        raise RunError(run.uri, problem, "Leave out fewer steps, or let it train on")
    return steps
