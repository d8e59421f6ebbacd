"""Does silencing a neuron do what the data that taught it suggests? The study's ablation, and more.

Each of the strongest attributed neurons (or rows, or heads) is ablated on the datums that moved it
most. Told are the tokens whose predictions flip, beside those that attribution found notable, and
what becomes of the log-probability of each true next token.

Memory: one row of a few bytes for every flip and for every scored position that moved; all neurons
of the study's model (1,200, of 200 scored datums each) take about 0.2 GB.

Shapes: N datum of the text, K datum of a subject, T position, M position of any subject.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.ablation.config import AblationConfig, SplitText, SubjectChoice, choose_subjects
from analysis.ablation.flips import (
    NeuronFlips,
    agreement,
    context_table,
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
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import joined, write_tables
from analysis.run.run import Run
from capture.models.transformer import LanguageModel


def ablate(
    run: Run, config: AblationConfig, report: Report | None = None, sweep: Sweep = in_turn
) -> Ablation:
    """Ablate the chosen subjects, one at a time, in the run's last model.

    ``report`` is told of pairs of subject and datum, ``sweep`` says where the model is run. Raises
    ``RunError`` where attribution has not been done on the run as it is, or found nothing;
    ``ConfigError`` or ``UnitError`` for subjects that do not exist.
    """
    model, text = run.model(), SplitText.of(run, config.split)
    choice = choose_subjects(run, model, len(text.token_NT), config)
    train_NT = run.token_NT
    plan = AblationPlan.of(
        model, text.token_NT, choice.subjects, config.value, train_NT, config.seed
    )
    scored = [datum_K[: config.scored_datums] for datum_K in choice.datums]
    both = TwoStageProgress(report, sum(map(len, choice.datums)) + sum(map(len, scored)))
    silenced = ablated_predictions(model, text.token_NT, plan, choice.datums, both.flips, sweep)
    flips = list(flips_by_subject(silenced, choice, config.value))
    changes = score_targets(model, text, plan, choice, scored, config.value, both, sweep)
    return build_tables(run, text, config, choice, flips, changes, silenced.certified)


def write_ablation(run: Run, found: Ablation) -> None:
    """Leave the tables in the run, under ``analysis/ablate/``."""
    write_tables(run, JOB, vars(found), TABLES)


class TwoStageProgress:
    """Tells of two things that are done one after the other as of one."""

    def __init__(self, report: Report | None, total: int) -> None:
        self.report, self.total, self.before = report, total, 0

    def flips(self, done: int, of: int) -> None:
        """The first of the two."""
        self.tell(done)
        self.before = of

    def scores(self, done: int, of: int) -> None:
        """The second."""
        self.tell(self.before + done)

    def tell(self, done: int) -> None:
        if self.report:
            self.report(done, self.total)


def flips_by_subject(
    silenced: AblatedPredictions, choice: SubjectChoice, kind: Value
) -> Iterator[NeuronFlips]:
    """The evaluation of each subject, in order."""
    changes = silenced.changes
    bounds = np.searchsorted(changes.subject_M, np.arange(len(choice.subjects) + 1))
    for place, subject in enumerate(choice.subjects):
        own, datum_K = slice(bounds[place], bounds[place + 1]), choice.datums[place]
        yield NeuronFlips(
            subject=subject,
            kind=kind,
            notable=choice.notable[place],
            datum_K=datum_K,
            before_KT=silenced.before(datum_K),
            row_M=indices_of(changes.datum_M[own], datum_K),
            position_M=changes.position_M[own],
            after_M=changes.after_M[own],
        )


def score_targets(
    model: LanguageModel,
    text: SplitText,
    plan: AblationPlan,
    choice: SubjectChoice,
    datums: list[np.ndarray],
    kind: Value,
    progress: TwoStageProgress,
    sweep: Sweep,
) -> list[TargetChanges]:
    """What becomes of the targets' log-probabilities on some datums of each subject, in order."""
    told = progress.scores
    texts = text.token_NT, text.target_NT
    pieces = [*probability_changes(model, *texts, plan, datums, told, sweep)]
    columns = zip(no_changes(), *pieces, strict=True)
    subject_M, datum_M, position_M, change_M = map(np.concatenate, columns)
    order_M = np.argsort(subject_M, kind="stable")
    bounds = np.searchsorted(subject_M[order_M], np.arange(len(datums) + 1))
    found = []
    for place, (subject, datum_K) in enumerate(zip(choice.subjects, datums, strict=True)):
        own_M = order_M[bounds[place] : bounds[place + 1]]
        row_M = indices_of(datum_M[own_M], datum_K)
        target_KT = text.target_NT[datum_K]
        found.append(
            TargetChanges(subject, kind, target_KT, row_M, position_M[own_M], change_M[own_M])
        )
    return found


def indices_of(datum_M: np.ndarray, datum_K: np.ndarray) -> np.ndarray:
    """Where each datum stands in a list of distinct ones, [M]."""
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
    """All tables."""
    tokens, stream_NT = run.tokens, text.stream_NT
    neurons = pd.DataFrame(
        [
            {
                **agreement(found),
                **change.mean(),
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
    return Ablation(
        flips=joined([flip_table(found, tokens) for found in flips], FLIPS),
        contexts=joined(contexts, CONTEXTS),
        neurons=joined([neurons], NEURONS),
        layers=joined([layer_table(neurons, run.layout.names)], LAYERS),
        tokens=joined([target_table(found, tokens) for found in changes], TOKENS),
        moves=joined([move_table(found, tokens) for found in flips], MOVES),
        certified=certified,
    )
