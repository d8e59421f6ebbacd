"""``ontogeny spectrum``: in how many directions did a run train, when, and which neurons?

The Gram matrix of the steps is a sum over pieces of parameters. Each piece goes through the run
once, so the pieces can be shared among processes or machines, and a run that fits in one piece is
gone through once. Left vectors take a second pass over the pieces, datums a third.

Shapes: P entry of a parameter, S step, R step that is kept, K direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from analysis.jobs.question import Question
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import table_set, write_tables
from analysis.run.run import Run
from analysis.spectra.config import SpectrumConfig
from analysis.spectra.directions import Directions, GramPiece, PieceRows, left_vectors
from analysis.spectra.gram import coefficients, decompose, treated, treatment_matrix
from analysis.spectra.loads import step_loads, strongest_datums
from analysis.spectra.low_rank import (
    Basis,
    low_rank_losses,
    random_coefficients,
    trained_again,
)
from analysis.spectra.neurons import NeuronGroups
from analysis.spectra.page import spectrum_page
from analysis.spectra.pieces import MAX_BYTES, Piece, pieces_of
from analysis.spectra.reading import StepSource, silent, step_source
from analysis.spectra.results import (
    Analysed,
    direction_frames,
    empty,
    neuron_frames,
    spectra_frames,
)
from analysis.spectra.samples import sampled_spectra
from analysis.spectra.tables import DATUMS, LOW_RANK, SCHEMAS, Spectrum
from analysis.spectra.unfinished import JOB, UnfinishedGram, discard_unfinished
from capture.errors import ConfigError, RunError

if TYPE_CHECKING:
    from capture.replay.steps import StepReplayer

Report = Callable[[int, int], None]
"""Called with the steps that were gone through, and all of them."""


def spectrum_question(config: SpectrumConfig) -> Question:
    return Question.of(JOB, config)


def write_spectrum(run: Run, found: Spectrum, question: Question, name: str = "") -> None:
    """Write tables and ``index.html`` to ``RUN/analysis/spectrum/``, or to its folder ``name``."""
    pages = {"index.html": spectrum_page(found, question, run.uri)}
    write_tables(run, table_set(JOB, name), vars(found), SCHEMAS, question, pages)
    discard_unfinished(run, name)


@dataclass(eq=False)
class Steps:
    """Counts the steps that are gone through."""

    report: Report
    wanted: int
    done: int = field(default=0)

    def __call__(self) -> None:
        self.done += 1
        self.report(self.done, max(self.done, self.wanted))


def measure_spectrum(
    run: Run,
    config: SpectrumConfig,
    report: Report = lambda done, wanted: None,
    *,
    sweep: Sweep = in_turn,
    name: str = "",
    resumable: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Spectrum:
    """Return the spectrum of a run's gradients, updates or weights, with its nulls.

    ``sweep``: where pieces of parameters are read. ``resumable``: keep what is done in the run,
    for tables with this ``name``. ``max_bytes``: size of a piece; changes rounding only.

    Raises what ``step_source`` and replay raise, ``RunError`` if nothing changed in the steps, and
    ``ConfigError`` for more directions than the steps have.
    """
    source = step_source(run, config)
    again = trained_again(run) if config.low_rank else None
    pieces = pieces_of(source.layout, len(source.steps), max_bytes)
    alone = len(pieces) == 1 and sweep is in_turn
    counter = Steps(report, expected_steps(source, config, len(pieces), alone))
    rows = PieceRows(source, {} if alone else None, counter if sweep is in_turn else silent)
    unfinished = None
    if resumable and len(pieces) > 1:
        unfinished = UnfinishedGram.of(run, spectrum_question(config), pieces, name)
    gram_SS = whole_gram(rows, pieces, sweep, unfinished)
    if not np.isfinite(gram_SS).all():
        problem = f"has {config.what} that are not finite in these steps"
        raise RunError(run.uri, problem, "Choose steps before training diverged: --steps A:B")
    if not np.trace(gram_SS) > 0:
        raise RunError(run.uri, f"has {config.what} that are all 0 in these steps")
    found = Analysed(config, np.array(source.steps), gram_SS, source.layout.size)
    return describe(run, found, rows, pieces, sweep, counter, again)


def expected_steps(source: StepSource, config: SpectrumConfig, pieces: int, alone: bool) -> int:
    """Return how many steps are gone through in all passes."""
    each = source.replayer.num_steps(source.steps) if source.replayer else len(source.steps)
    passes = pieces * (1 if alone else 2) + bool(config.datums and config.what != "weights")
    whole = source.steps.stop - source.steps.start
    trainings = len(config.low_rank) * (1 + config.draws)
    return passes * each + whole * (bool(config.low_rank) + trainings)


def whole_gram(
    rows: PieceRows, pieces: Sequence[Piece], sweep: Sweep, unfinished: UnfinishedGram | None
) -> np.ndarray:
    """Return the Gram matrix of all pieces, float64 [S, S]."""
    steps = len(rows.source.steps)
    done, gram_SS = unfinished.read(steps) if unfinished else (0, np.zeros((steps, steps)))
    for part_SS in sweep(GramPiece(rows), pieces[done:]):
        gram_SS += part_SS
        done += 1
        if unfinished and done < len(pieces):
            unfinished.keep(done, gram_SS)
    return gram_SS


def describe(
    run: Run,
    found: Analysed,
    rows: PieceRows,
    pieces: Sequence[Piece],
    sweep: Sweep,
    counter: Steps,
    again: "StepReplayer | None",
) -> Spectrum:
    """Return all tables."""
    source = rows.source
    gram_RR = treated(found.gram_SS, found.config.treatment)
    decomposed = decompose(gram_RR)
    config = replace(found.config, directions=min(found.config.directions, decomposed.rank))
    found, rng = replace(found, config=config), np.random.default_rng(config.seed)
    leading = max((config.directions, *config.low_rank))
    if leading > decomposed.rank:
        problem = f"got {leading}, the steps have {decomposed.rank} directions"
        raise ConfigError("spectrum.low_rank", problem)
    matrix_SR = treatment_matrix(found.gram_SS, config.treatment)
    coefficient_SK = coefficients(matrix_SR, decomposed, leading)
    if config.low_rank:
        count = max(config.low_rank)
        drawn = [
            random_coefficients(found.gram_SS, matrix_SR, count, rng) for _ in range(config.draws)
        ]
        coefficient_SK = np.concatenate([coefficient_SK, *drawn], 1)
    groups = NeuronGroups.of(source.layout)
    left = left_vectors(rows, pieces, groups, coefficient_SK, sweep)
    spectra, values = spectra_frames(found, decomposed.value_K, rng)
    size = min(config.sample, max(2, len(gram_RR) // 2))
    directions, steps = direction_frames(found, decomposed)
    neurons, learned = neuron_frames(found, groups, left)
    return Spectrum(
        spectra,
        values,
        sampled_spectra(gram_RR, size, config.repeats, rng, config.cutoff),
        directions,
        steps,
        neurons,
        learned,
        datum_loads(run, source, config, left, counter),
        projected_losses(source, config, left, leading, counter, again),
    )


def datum_loads(
    run: Run, source: StepSource, config: SpectrumConfig, left: Directions, counter: Steps
) -> pd.DataFrame:
    """Return ``DATUMS``; empty if they were not asked for, and for weights."""
    if not config.datums or config.what == "weights":
        return empty(DATUMS)
    shapes, offsets = source.layout.shapes, source.layout.offsets
    direction_KP = torch.from_numpy(left.left_PK[:, : config.directions].T.copy())
    direction_K = {
        unit: direction_KP[:, first:end].reshape(-1, *shapes[unit])
        for unit, first, end in zip(shapes, offsets, offsets[1:], strict=False)
    }
    loads = step_loads(source, direction_K, counter)
    return strongest_datums(loads, run.num_datums, config.datums)


def projected_losses(
    source: StepSource,
    config: SpectrumConfig,
    left: Directions,
    leading: int,
    counter: Steps,
    again: "StepReplayer | None",
) -> pd.DataFrame:
    """Return ``LOW_RANK``; empty if it was not asked for."""
    if again is None:
        return empty(LOW_RANK)
    left_PK = torch.from_numpy(left.left_PK)
    drawn = left_PK[:, leading:].split(max(config.low_rank), dim=1)
    bases = [Basis(draw, part) for draw, part in enumerate([left_PK[:, :leading], *drawn])]
    return low_rank_losses(source, again, bases, config.low_rank, counter)
