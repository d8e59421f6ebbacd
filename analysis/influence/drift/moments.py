"""Sums over all shifts of a weight, from which its drift along any direction follows.

With s_i the shift of one datum in one step, [R, C], and b a direction of the unit's inputs:

    Σ_i s_i b = (Σ_i s_i) b          Σ_i ‖s_i b‖² = bᵀ (Σ_i s_iᵀ s_i) b.

So the sums and one C × C matrix suffice, whatever the number of directions. The null of a random
walk gives every shift a random sign; a few such walks are added up beside the true one.

Shapes: N datum, T position, R output of the weight, C input, D random walk.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analysis.influence.directions.bases import NAMES, Side, read_directions
from analysis.run.names import nearest
from analysis.run.run import Run
from capture.errors import RunError, UnitError
from capture.gradients.factored_algebra import dense

Report = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class StepShifts:
    """The shifts of one step's datums, and what the unit's inputs were."""

    shift_NRC: Tensor
    input_MC: Tensor | None
    """The inputs at all positions; None for a unit without."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the shifts of a weight, float64."""

    count: int
    """Shifts: datums times steps."""
    sum_RC: Tensor
    square_RC: Tensor
    """Σ s_i², entry by entry."""
    gram_CC: Tensor
    """Σ s_iᵀ s_i"""
    walk_DRC: Tensor
    """Σ ± s_i, with random signs."""
    input_CC: Tensor
    """Covariance of the unit's inputs; 0 for a unit without."""


def add_up(steps: Iterable[StepShifts], shape: tuple[int, int], walks: int, seed: int) -> Moments:
    """Return the sums over the shifts of all steps; ``walks``: number of random walks."""
    rows, columns = shape
    sum_RC, square_RC = zeros(rows, columns), zeros(rows, columns)
    gram_CC, second_CC = zeros(columns, columns), zeros(columns, columns)
    walk_DRC, first_C = zeros(walks, rows, columns), zeros(columns)
    generator = torch.Generator().manual_seed(seed)
    count = positions = 0
    for step in steps:
        shift_NRC = step.shift_NRC.double()
        sum_RC += shift_NRC.sum(0)
        square_RC += shift_NRC.square().sum(0)
        gram_CC += torch.einsum("nrc,nrd->cd", shift_NRC, shift_NRC)
        sign_DN = torch.randint(0, 2, (walks, len(shift_NRC)), generator=generator) * 2.0 - 1
        walk_DRC += torch.einsum("dn,nrc->drc", sign_DN.double(), shift_NRC)
        count += len(shift_NRC)
        if step.input_MC is not None:
            input_MC = step.input_MC.double()
            first_C += input_MC.sum(0)
            second_CC += input_MC.T @ input_MC
            positions += len(input_MC)
    mean_C = first_C / max(positions, 1)
    covariance_CC = second_CC / max(positions, 1) - mean_C[:, None] * mean_C
    return Moments(count, sum_RC, square_RC, gram_CC, walk_DRC, covariance_CC)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def require_matrix(run: Run, unit: str) -> tuple[int, int]:
    """Return the outputs and inputs of a captured weight; raise ``UnitError`` for anything else."""
    shapes = run.layout.shapes
    if unit not in shapes:
        raise UnitError(unit, "was not captured", nearest(unit, list(shapes)))
    if len(shapes[unit]) != 2:
        raise UnitError(unit, f"has {len(shapes[unit])} axes; drift needs a weight with two")
    outputs, inputs = reversed(shapes[unit]) if unit in run.layout.transposed else shapes[unit]
    return outputs, inputs


def read_basis(
    run: Run, unit: str, side: Side, basis: str, where: str, names: Sequence[str] = NAMES
) -> tuple[int, np.ndarray | None]:
    """Return the length of a direction, and the directions of a file; None for a named basis.

    ``names``: the bases that an error lists.

    Raises ``UnitError`` for a unit that was not captured or is no matrix, and ``ConfigError``,
    which names the setting ``where``, for a file without directions that fit it.
    """
    rows, columns = require_matrix(run, unit)
    width = columns if side == "inputs" else rows
    return width, read_directions(where, basis, width, names)


def run_moments(
    run: Run,
    unit: str,
    *,
    side: Side = "inputs",
    walks: int = 99,
    seed: int = 0,
    report: Report = lambda done, wanted: None,
) -> Moments:
    """Return the sums over all shifts of a unit with two axes; replays the run once.

    With the side ``outputs`` all is transposed: R counts inputs, C outputs.

    Raises ``UnitError`` for a unit that was not captured or has not two axes, ``ConfigError`` for
    a run that cannot be replayed, and ``RunError`` for one without steps.
    """
    shape = require_matrix(run, unit)
    if not run.steps_done:
        raise RunError(run.uri, "has no committed steps", "Let it train on: ontogeny capture")
    steps = replayed_shifts(run, unit, report)
    if side == "outputs":
        turned = (StepShifts(step.shift_NRC.transpose(1, 2), None) for step in steps)
        return add_up(turned, (shape[1], shape[0]), walks, seed)
    return add_up(steps, shape, walks, seed)


def replayed_shifts(run: Run, unit: str, report: Report) -> Iterator[StepShifts]:
    """Yield the shifts of every step as [outputs, inputs]; a transposed weight is turned."""
    from capture.replay.steps import StepReplayer  # loads the training engine

    transposed = unit in run.layout.transposed
    replayer = StepReplayer(run.gradients.replayable, [run.start, *run.segments])
    updates = replayer.updates(range(run.steps_done), [unit], lambda: None)
    for done, update in enumerate(updates, 1):
        uses = update.factors[unit]
        shift_NRC = update.scale * dense(uses, run.layout.shapes[unit])
        if update.preconditioner:
            shift_NRC = shift_NRC * update.preconditioner[unit]
        inputs = [use.a_NTI.flatten(0, 1) for use in uses if use.a_NTI is not None]
        shift_NRC = shift_NRC.transpose(1, 2) if transposed else shift_NRC
        yield StepShifts(shift_NRC.cpu(), torch.cat(inputs).cpu() if inputs else None)
        report(done, run.steps_done)
