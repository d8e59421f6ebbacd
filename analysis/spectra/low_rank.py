"""Does training need more than the first directions? Train again with projected updates.

After every step of the optimizer, the change of the chosen units is projected on the first k left
singular vectors; the optimizer's moments see the whole gradient, and other units train as before.
Beside it stands the run's own change projected once, at its end, and the null: k random directions
of the space that the steps span, drawn several times.

Shapes: P entry of a parameter, S step, R step that is kept, K direction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from scipy import linalg
from torch import Tensor

from analysis.run.run import Run
from analysis.spectra.reading import Report, StepSource, replayer_of, silent
from capture.errors import ConfigError

if TYPE_CHECKING:
    from capture.engine.engine import Engine
    from capture.replay.steps import StepReplayer

LOW_RANK = pa.schema(
    [
        pa.field("directions", pa.int32()),  # k
        pa.field("basis", pa.string()),  # leading, or random
        pa.field("draw", pa.int32()),  # number of the random basis, from 1; 0 for leading
        pa.field("projected", pa.float64()),  # held-out loss, the run's change projected at its end
        pa.field("trained", pa.float64()),  # held-out loss, every update projected
        pa.field("start", pa.float64()),  # held-out loss before the steps
        pa.field("end", pa.float64()),  # held-out loss after them, as the run went
    ]
)


def random_coefficients(
    gram_SS: np.ndarray, matrix_SR: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return A with which C A holds ``count`` random orthonormal vectors, [S, count].

    They lie in the space of the treated steps. ``count`` must not exceed its dimension.
    """
    mixed_SK = matrix_SR @ rng.normal(size=(matrix_SR.shape[1], count))
    upper_KK = linalg.cholesky(mixed_SK.T @ gram_SS @ mixed_SK)
    return linalg.solve_triangular(upper_KK, mixed_SK.T, trans="T").T


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal directions of the chosen units."""

    draw: int
    """Number of a random basis, from 1; 0 for the leading directions."""
    left_PK: Tensor

    @property
    def name(self) -> str:
        return "random" if self.draw else "leading"


def trained_again(run: Run) -> "StepReplayer":
    """Return what trains the run again.

    Raises ``RunError`` for a run of a custom loop, ``ConfigError`` for one without held-out data.
    """
    replayer = replayer_of(run)
    corpus = replayer.run.plan.corpus
    if corpus.validation is None and corpus.test is None:
        problem = "needs held-out data, and the run has none"
        raise ConfigError("spectrum.low_rank", problem, "Capture with corpus.validation_share")
    return replayer


def low_rank_losses(
    source: StepSource,
    replayer: "StepReplayer",
    bases: Sequence[Basis],
    counts: Sequence[int],
    report: Report = silent,
) -> pd.DataFrame:
    """Return ``LOW_RANK`` for each number of directions and each basis.

    ``replayer``: of a run that ``trained_again`` accepted.
    """
    layout, steps = source.layout, range(source.steps.start, source.steps.stop)
    engine = replayer.engine(layout.names, kinds=())
    go_to(replayer, engine, steps.start)
    first = engine.snapshot()
    start_P, start = layout.flatten(own(engine, layout.names)), held_out(replayer, engine)
    for _ in projected_steps(replayer, engine, steps, None, layout.names):
        report()
    end_P, end = layout.flatten(own(engine, layout.names)), held_out(replayer, engine)
    last, where = engine.snapshot(), replayer.run.store.uri
    rows = []
    for count in counts:
        for basis in bases:
            left_PK = basis.left_PK[:, :count].to(engine.device)
            projected_P = start_P + left_PK @ (left_PK.T @ (end_P - start_P))
            # Other units stand at the end of the run when its change is projected.
            engine.restore(last, steps.stop, where)
            write(engine, layout.names, projected_P)
            projected = held_out(replayer, engine)
            engine.restore(first, steps.start, where)
            for _ in projected_steps(replayer, engine, steps, left_PK, layout.names):
                report()
            trained = held_out(replayer, engine)
            rows.append((count, basis.name, basis.draw, projected, trained, start, end))
    return pd.DataFrame(rows, columns=LOW_RANK.names)


def go_to(replayer: "StepReplayer", engine: "Engine", step: int) -> None:
    """Bring the engine to the state of the run after so many steps."""
    from capture.engine.build import restore  # loads the training engine

    marker = replayer.marker_before(step)
    restore(engine, replayer.run.store, marker)
    for _ in replayer.advance(engine, marker.end_step, step):
        pass


def projected_steps(
    replayer: "StepReplayer",
    engine: "Engine",
    steps: range,
    left_PK: Tensor | None,
    units: Sequence[str],
) -> Iterator[int]:
    """Take the steps with an engine that stands before them; yields each when it is taken.

    ``left_PK``: directions on which each change is projected; None: changes stay whole.
    """
    from capture.engine.left_out import batch_of  # loads the training engine
    from capture.engine.observer import to_device
    from capture.replay.segments import as_captured

    plan = replayer.run.plan
    token_NT, target_NT = to_device(plan.corpus.train, engine.device)
    for planned in islice(plan.planned_steps(steps.start), len(steps)):
        batch = batch_of(plan, token_NT, target_NT, planned)
        before_P = flat(engine, units)
        with as_captured(replayer.run):
            engine.step(*batch, step=planned.step, epoch=planned.epoch)
        if left_PK is not None:
            change_P = flat(engine, units) - before_P
            write(engine, units, before_P + left_PK @ (left_PK.T @ change_P))
        yield planned.step


def held_out(replayer: "StepReplayer", engine: "Engine") -> float:
    """Return the loss on held-out text: validation, or else test."""
    from capture.engine.evaluation import evaluate_splits  # loads the training engine

    planned = next(replayer.run.plan.planned_steps(0))
    return evaluate_splits(replayer.run.plan, engine, planned)[0].loss


def own(engine: "Engine", units: Sequence[str]) -> dict[str, Tensor]:
    parameters = dict(engine.model.named_parameters())
    return {name: parameters[name].detach() for name in units}


def flat(engine: "Engine", units: Sequence[str]) -> Tensor:
    """Return a copy of the units as one vector, [P]."""
    return torch.cat([tensor.flatten() for tensor in own(engine, units).values()])


@torch.no_grad()
def write(engine: "Engine", units: Sequence[str], value_P: Tensor) -> None:
    """Set the units to the entries of one vector."""
    first = 0
    for tensor in own(engine, units).values():
        tensor.copy_(value_P[first : first + tensor.numel()].view_as(tensor))
        first += tensor.numel()
