"""Ablate attributed neurons, rows or heads and measure how the model's predictions change.

Each subject is ablated by itself, on the datums that moved it most. The tables report which
next-token predictions flip, next to the tokens that attribution selected for the subject, and how
the log-probability of each true next token changes. This is the ablation study of the paper, with
mean and resample ablation, rows, heads and confidence intervals added.

Memory: a few bytes for every flip and for every scored position whose log-probability can change.
All 1,200 neurons of the study's model, with 200 scored datums each, take about 0.2 GB.

Shapes: N datum of the text, K datum of a subject, T position, M changed position of any subject.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.ablation.config import AblationConfig, SplitText, SubjectChoice, choose_subjects
from analysis.ablation.flips import (
    NeuronFlips,
    context_table,
    flip_shares,
    flip_table,
    layer_table,
    move_table,
)
from analysis.ablation.forward import AblatedPredictions, Report, ablated_predictions
from analysis.ablation.log_probability import no_changes, probability_changes
from analysis.ablation.replacement import AblationPlan, Value
from analysis.ablation.tables import (
    CONTEXTS,
    FLIPS,
    JOB,
    LAYERS,
    MOVES,
    NEURONS,
    TABLES,
    TOKENS,
    Ablation,
)
from analysis.ablation.target_changes import TargetChanges, target_table
from analysis.jobs.question import Question
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import concat_frames, table_set, write_tables
from analysis.run.run import Run
from capture.parts import KnownModel


def ablate(
    run: Run, config: AblationConfig, report: Report | None = None, sweep: Sweep = in_turn
) -> Ablation:
    """Ablate the chosen subjects, one at a time, in the model after ``config.step`` updates.

    ``report`` is called with the number of (subject, datum) pairs done and their total. ``sweep``
    decides on which machines the model runs. Raises ``RunError`` if the run has no attribution, if
    its attribution covers fewer steps than the run, or if it selected nothing to ablate; raises
    ``ConfigError`` or ``UnitError`` for subjects that do not exist.
    """
    model, text = run.parted(config.step), SplitText.of(run, config.split)
    choice = choose_subjects(run, model, len(text.token_NT), config)
    tokens = text.token_NT
    plan = AblationPlan.of(model, tokens, choice.subjects, config.value, run.token_NT, config.seed)
    scored = [datum_K[: config.scored_datums] for datum_K in choice.datums]
    progress = TwoStageProgress(report, sum(map(len, choice.datums)) + sum(map(len, scored)))
    ablated = ablated_predictions(model, tokens, plan, choice.datums, progress.flips, sweep)
    flips = list(flips_by_subject(ablated, choice, config.value))
    changes = score_targets(model, text, plan, choice, scored, config.value, progress, sweep)
    return build_tables(run, text, config, choice, flips, changes, ablated.certified)


def write_ablation(
    run: Run, found: Ablation, question: Question | None = None, name: str = ""
) -> None:
    """Write the tables to ``run.tables``, as the set with this name."""
    write_tables(run, table_set(JOB, name), vars(found), TABLES, question)


class TwoStageProgress:
    """Reports the progress of two stages that run one after the other as one count."""

    def __init__(self, report: Report | None, total: int) -> None:
        self.report, self.total, self.before = report, total, 0

    def flips(self, done: int, of: int) -> None:
        """Report progress of the first stage."""
        self.forward(done)
        self.before = of

    def scores(self, done: int, of: int) -> None:
        """Report progress of the second stage."""
        self.forward(self.before + done)

    def forward(self, done: int) -> None:
        if self.report:
            self.report(done, self.total)


def flips_by_subject(
    ablated: AblatedPredictions, choice: SubjectChoice, kind: Value
) -> Iterator[NeuronFlips]:
    """Yield the flips of each subject, in the order of ``choice.subjects``."""
    changes = ablated.changes
    bounds = np.searchsorted(changes.subject_M, np.arange(len(choice.subjects) + 1))
    for number, subject in enumerate(choice.subjects):
        own, datum_K = slice(bounds[number], bounds[number + 1]), choice.datums[number]
        yield NeuronFlips(
            subject=subject,
            kind=kind,
            notable=choice.notable[number],
            datum_K=datum_K,
            before_KT=ablated.before(datum_K),
            row_M=indices_of(changes.datum_M[own], datum_K),
            position_M=changes.position_M[own],
            after_M=changes.after_M[own],
        )


def score_targets(
    model: KnownModel,
    text: SplitText,
    plan: AblationPlan,
    choice: SubjectChoice,
    datums: list[np.ndarray],
    kind: Value,
    progress: TwoStageProgress,
    sweep: Sweep,
) -> list[TargetChanges]:
    """Return how ablation changes the targets' log-probabilities, one entry per subject, in order.

    ``datums`` lists the scored datums of each subject.
    """
    texts = text.token_NT, text.target_NT
    pieces = [*probability_changes(model, *texts, plan, datums, progress.scores, sweep)]
    columns = zip(no_changes(), *pieces, strict=True)
    subject_M, datum_M, position_M, change_M = map(np.concatenate, columns)
    # Pieces hold one chunk of datums each; a stable sort keeps each subject's datums in order.
    order_M = np.argsort(subject_M, kind="stable")
    bounds = np.searchsorted(subject_M[order_M], np.arange(len(datums) + 1))
    found = []
    for number, (subject, datum_K) in enumerate(zip(choice.subjects, datums, strict=True)):
        own_M = order_M[bounds[number] : bounds[number + 1]]
        row_M = indices_of(datum_M[own_M], datum_K)
        target_KT = text.target_NT[datum_K]
        found.append(
            TargetChanges(subject, kind, target_KT, row_M, position_M[own_M], change_M[own_M])
        )
    return found


def indices_of(datum_M: np.ndarray, datum_K: np.ndarray) -> np.ndarray:
    """Return the index of each datum in ``datum_K``, whose entries are distinct, [M]."""
    ascending = np.argsort(datum_K)
    return ascending[np.searchsorted(datum_K[ascending], datum_M)]


def build_tables(
    run: Run,
    text: SplitText,
    config: AblationConfig,
    choice: SubjectChoice,
    flips: list[NeuronFlips],
    changes: list[TargetChanges],
    certified: float,
) -> Ablation:
    """Build every table from the flips and log-probability changes of the subjects."""
    tokens, stream_NT = run.tokens, text.stream_NT
    neurons = pd.DataFrame(
        [
            {
                **flip_shares(found),
                **change.mean(),
                **change.contrast(found.notable),
                "scored_datums": len(change.target_KT),
                "attributed": attributed,
            }
            for found, change, attributed in zip(flips, changes, choice.attributed, strict=True)
        ]
    )
    contexts = [
        context_table(found, stream_NT[found.datum_K], tokens, config.contexts_per_token)
        for found in flips
    ]
    targets = zip(changes, choice.notable, strict=True)
    return Ablation(
        flips=concat_frames([flip_table(found, tokens) for found in flips], FLIPS),
        contexts=concat_frames(contexts, CONTEXTS),
        neurons=concat_frames([neurons], NEURONS),
        layers=concat_frames([layer_table(neurons, run.layout.names)], LAYERS),
        tokens=concat_frames([target_table(*each, tokens) for each in targets], TOKENS),
        moves=concat_frames([move_table(found, tokens) for found in flips], MOVES),
        certified=certified,
    )
