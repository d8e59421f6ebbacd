"""The steps of a run from last to first, with what turns their gradients into lifetime shifts.

There are two sources of a step's per-sample gradients:

- ``ReplayedSteps``: the run is replayed, segment by segment. The factors and preconditioners of
  some steps are held at a time, at most ``max_bytes``; a segment that needs more is replayed once
  for each part of it.
- ``StoredSteps``: a custom training loop cannot be replayed. Its factors must be in the record;
  coefficients then follow from tables and checkpoints. Factors of biases and norms are stored as
  sums over positions, so the position of their outliers is 0.

Beside that, each entry has two float64 numbers (``Persistence``) with Adam, and each unit with SGD.

Shapes: N datum of a step, by slot.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from analysis.run.custom_loop import read_settings
from analysis.run.lifetimes import Lifetimes
from analysis.run.run import Run
from analysis.run.updates.applied_updates import UpdateSource
from capture.format.factor_reader import DatumFactors
from capture.gradients.factors import Factor, Factors
from capture.optim.lifetime import Coefficient, Persistence

MAX_BYTES = 2 * 2**30
"""Default bound on the memory for replayed steps; at least one step is held."""


@dataclass(frozen=True, eq=False)
class BackwardStep:
    """The gradients of one step in factored form, and their multipliers."""

    step: int
    datum_N: list[int]
    factors: Factors
    """Gradients of the loss whose shifts the run records."""
    coefficients: dict[str, Coefficient]
    """Multiplier from gradient to lifetime shift, by unit."""

    @property
    def multipliers(self) -> tuple[float, dict[str, Tensor] | None]:
        """The scale, and a further multiplier of each entry by unit; None: 1 everywhere."""
        first, *others = self.coefficients.values()
        if isinstance(first, float) and all(
            isinstance(each, float) and each == first for each in others
        ):
            return first, None
        return 1.0, {name: self.entries(name) for name in self.coefficients}

    def entries(self, unit: str) -> Tensor:
        """Return a unit's multipliers, float32, on the device of its gradients."""
        device = self.factors[unit][0].delta_NTO.device
        found = torch.as_tensor(self.coefficients[unit], dtype=torch.float64)
        return found.to(device, torch.float32)


class BackwardSteps(Protocol):
    """All committed steps, from last to first."""

    after: dict[str, Persistence]
    """Persistence of each unit after the step that comes next; at the end, at the start of the
    run."""

    def __iter__(self) -> Iterator[BackwardStep]: ...


def backward_steps(run: Run, max_bytes: int = MAX_BYTES) -> BackwardSteps:
    """Return the steps of a run: by replay, or from stored factors of a custom training loop.

    Iteration raises ``RunError`` for a custom loop without factors, ``ReplayError`` if this machine
    does not arrive at the stored checkpoints, and ``ShardError`` for damaged tables.
    """
    if run.from_custom_loop:
        return StoredSteps(run)
    return ReplayedSteps(run, max_bytes)


# --- replay ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class HeldStep:
    """What is held of a replayed step until its coefficients are known."""

    step: int
    datum_N: list[int]
    factors: Factors
    preconditioner: dict[str, Tensor] | None

    @property
    def num_bytes(self) -> int:
        uses = [use for uses in self.factors.values() for use in uses]
        tensors = [x for use in uses for x in (use.delta_NTO, use.a_NTI, use.token_NT)]
        tensors += list((self.preconditioner or {}).values())
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)


@dataclass(eq=False)
class ReplayedSteps:
    """Steps by replay."""

    run: Run
    max_bytes: int
    after: dict[str, Persistence] = field(default_factory=dict)

    def __iter__(self) -> Iterator[BackwardStep]:
        source = update_source(self.run)
        names = self.run.layout.names
        self.after = dict.fromkeys(names, Persistence())
        rows = source.rows(0)
        for held in self.held_steps(source):
            coefficients = {}
            for name in names:
                applied = source.applied(name, rows[held.step])
                if held.preconditioner:
                    own = held.preconditioner[name]
                    applied = replace(applied, preconditioner=own.to(exact_device(own)).double())
                coefficients[name] = self.after[name].of_gradient(applied)
                self.after[name] = self.after[name].before(applied)
            yield BackwardStep(held.step, held.datum_N, held.factors, coefficients)

    def held_steps(self, source: UpdateSource) -> Iterator[HeldStep]:
        """Yield the steps from last to first; those of one part of a segment are held at a time."""
        from capture.replay.steps import StepReplayer  # loads the training engine

        committed = source.committed
        markers = [committed.start, *committed.segments]
        positions = source.config.capture.loss_positions
        replayer = StepReplayer(source.gradients.replayable, markers, positions)
        names, end, at_once = self.run.layout.names, committed.steps_done, 1
        starts = [segment.first_step for segment in committed.segments]
        while end > 0:
            first = max(end - at_once, *(start for start in starts if start < end))
            part = [
                HeldStep(update.step, update.datum_N, update.factors, update.preconditioner)
                for update in replayer.updates(range(first, end), names, lambda: None)
            ]
            at_once = max(1, self.max_bytes // max(1, part[0].num_bytes))
            yield from reversed(part)
            end = first


def exact_device(tensor: Tensor) -> torch.device:
    """Return the device of a tensor, or the CPU if that device has no float64."""
    return torch.device("cpu") if tensor.device.type == "mps" else tensor.device


# --- stored factors -------------------------------------------------------------------------------


@dataclass(eq=False)
class StoredSteps:
    """Steps from stored factors."""

    run: Run
    after: dict[str, Persistence] = field(default_factory=dict)

    def __iter__(self) -> Iterator[BackwardStep]:
        source, names = update_source(self.run), self.run.layout.names
        lifetimes = Lifetimes(source)
        of_units = (lifetimes.backward(name, 0) for name in names)
        for found in zip(*of_units, strict=True):
            coefficients = {}
            for name, (update, after) in zip(names, found, strict=True):
                coefficients[name] = after.of_gradient(update.applied)
                self.after[name] = after if update.idle else after.before(update.applied)
            update = found[0][0]
            factors = {name: self.factors(name, update.step, update.datum_N) for name in names}
            yield BackwardStep(update.step, list(update.datum_N), factors, coefficients)

    def factors(self, unit: str, step: int, datum_N: Sequence[int]) -> list[Factor]:
        """Return a unit's factors of all datums of a step."""
        read = self.run.gradients.read_one
        return batch_of([read(unit, step, slot, datum) for slot, datum in enumerate(datum_N)])


def batch_of(found: Sequence[DatumFactors]) -> list[Factor]:
    """Return the factors of several datums as those of one batch."""
    uses = zip(*(datum.uses for datum in found), strict=True)
    return [joined(list(same)) for same in uses]


def joined(same: list[Factor]) -> Factor:
    def cat(tensors: list[Tensor | None]) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(present) if present else None

    delta_NTO = torch.cat([use.delta_NTO for use in same])
    a_NTI, token_NT = cat([use.a_NTI for use in same]), cat([use.token_NT for use in same])
    return replace(same[0], delta_NTO=delta_NTO, a_NTI=a_NTI, token_NT=token_NT)


def update_source(run: Run) -> UpdateSource:
    settings = read_settings(run.uri, run.provenance)
    return UpdateSource(run.config, run.committed, run.gradients, settings)
