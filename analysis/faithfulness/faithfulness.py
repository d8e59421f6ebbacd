"""Which attribution is true? Each is judged by what silencing the neuron does to the model.

1. Of every MLP unit some neurons are drawn at random.
2. Each is silenced (its column set to zero) on text; for every token with enough positions as
   target, the mean change of its log-probability is measured. The tokens that change most for
   certain, in either direction, are the truly *affected* ones: those with the highest lower bound
   on the size of the change, for a large mean over few positions is chance as often as not.
3. Every claim about the neuron's tokens (``analysis.faithfulness.methods``) ranks the same
   tokens. Its AUC is the probability that an affected token outranks another one; its precision the
   share of affected tokens among the first few.

The truth itself is noisy. How noisy, says a line of its own: half of the text ranks the tokens by
what silencing changes there, and is judged by the other half. That is no bound on what evidence can
reach: all of training may well know more than half of a small text.

A token that a statistic rules out (one with no more evidence than expected, but for ``study``) ties
with all others of its kind at the end of the ranking. Which background and statistic suit an
evidence best is found on the very neurons that it is judged on.

The text is held-out text by default, so a claim is not credited for what the model learned by heart
from the very datums that the claim rests on; ``text="train"`` asks that question.

Shapes: S neuron, V token of the vocabulary, W ranked token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.ablation.log_probability import TokenChanges
from analysis.ablation.subjects import Subject
from analysis.faithfulness.auc import affected, auc, interval, precision
from analysis.faithfulness.ground_truth import (
    AblationEffects,
    FaithfulnessConfig,
    Report,
    draw_neurons,
    measure_effects,
)
from analysis.faithfulness.methods import ScoringMethod, scoring_methods
from analysis.jobs.job import Runner
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import joined, write_tables
from analysis.run.run import Run

JOB = "faithfulness"
LABELS = ["unit", "evidence", "background", "select"]
SPLIT_HALF = "half of the text on the other"

MEASURES = [
    pa.field("neurons", pa.int32()),  # judged
    pa.field("auc", pa.float64()),  # mean over these: P(affected token outranks another)
    pa.field("auc_low", pa.float64()),  # 95 % bootstrap interval over neurons
    pa.field("auc_high", pa.float64()),
    pa.field("precision", pa.float64()),  # mean share of affected tokens among the first few
    pa.field("precision_low", pa.float64()),
    pa.field("precision_high", pa.float64()),
]
METHOD = [
    pa.field("evidence", pa.string()),
    pa.field("background", pa.string()),  # unit, train, or none
    pa.field("select", pa.string()),  # statistic; rate: per position of the token
]
SCORES = pa.schema(
    [pa.field("unit", pa.string()), *METHOD, *MEASURES, pa.field("baseline", pa.bool_())]
)
"""One row a unit and evidence, with the background and statistic that suit it best over all units;
baseline: it needs no record of training."""
SELECTIONS = SCORES
"""The same with every background and statistic."""
NEURONS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("neuron", pa.int32()),
        *METHOD,
        pa.field("auc", pa.float64()),
        pa.field("precision", pa.float64()),
    ]
)
"""One row a neuron and claim."""
TABLES = {"scores": SCORES, "selections": SELECTIONS, "neurons": NEURONS}


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How far each claim can be trusted, and where."""

    scores: pd.DataFrame
    """``SCORES``"""
    selections: pd.DataFrame
    """``SELECTIONS``"""
    neurons: pd.DataFrame
    """``NEURONS``"""
    tokens: int
    """Ranked."""
    positions: int
    """Of the text that silencing is judged on."""


def faithfulness(
    run: Run,
    run_job: Runner,
    config: FaithfulnessConfig,
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> Faithfulness:
    """Judge every claim by silencing. Raises ``RunError`` where the run holds no text to do so,
    no outliers, no neurons, or too little text for any token to be ranked."""
    run.require_shards("outliers")
    subjects = draw_neurons(run, config)
    truth = measure_effects(run, subjects, config, report, sweep)
    affected_SW = affected_by(truth, truth.whole, config)
    judged = [
        evaluate(claim, truth.token_W, affected_SW, subjects, config)
        for claim in scoring_methods(run, run_job, subjects, config.seed)
    ]
    judged.append(split_half(truth, subjects, config))
    neurons = pd.concat(judged, ignore_index=True)
    selections = pd.DataFrame(summaries(neurons, config))
    return Faithfulness(
        scores=joined([best_of(selections)], SCORES),
        selections=joined([selections], SELECTIONS),
        neurons=joined([neurons], NEURONS),
        tokens=len(truth.token_W),
        positions=int(truth.whole.count_V.sum()),
    )


def write_faithfulness(run: Run, found: Faithfulness) -> None:
    """Leave the tables in the run, under ``analysis/faithfulness/``."""
    write_tables(run, JOB, vars(found), TABLES)


# --- the judgement --------------------------------------------------------------------------------


def affected_by(
    truth: AblationEffects, changes: TokenChanges, config: FaithfulnessConfig
) -> np.ndarray:
    """Which of the ranked tokens silencing affects, by all changes or by some, bool [S, W]."""
    return np.stack([affected(size_W, config.affected) for size_W in truth.sizes(changes)])


def evaluate(
    claim: ScoringMethod,
    token_W: np.ndarray,
    affected_SW: np.ndarray,
    subjects: Sequence[Subject],
    config: FaithfulnessConfig,
) -> pd.DataFrame:
    """``NEURONS`` of one claim about the ranked tokens, and whether it is a baseline."""
    return pd.DataFrame(
        {
            "unit": [subject.unit for subject in subjects],
            "neuron": [subject.group for subject in subjects],
            "evidence": claim.evidence,
            "background": claim.background,
            "select": claim.select,
            "baseline": claim.baseline,
            **ranked(claim.score_SV[:, token_W], affected_SW, config),
        }
    )


def split_half(
    truth: AblationEffects, subjects: Sequence[Subject], config: FaithfulnessConfig
) -> pd.DataFrame:
    """How well half of the text foretells the other half, the mean of both ways."""
    one, other = (
        evaluate(
            ScoringMethod(SPLIT_HALF, "", "", half_scores(truth, half), baseline=True),
            truth.token_W,
            affected_by(truth, rest, config),
            subjects,
            config,
        )
        for half, rest in ((truth.first, truth.second), (truth.second, truth.first))
    )
    return one.assign(**{name: (one[name] + other[name]) / 2 for name in ("auc", "precision")})


def half_scores(truth: AblationEffects, half: TokenChanges) -> np.ndarray:
    """What one half of the text says, as a score of every token."""
    score_SV = np.zeros(half.change_SV.shape)
    score_SV[:, truth.token_W] = truth.sizes(half)
    return score_SV


def ranked(
    score_SW: np.ndarray, affected_SW: np.ndarray, config: FaithfulnessConfig
) -> dict[str, list[float]]:
    """AUC and precision of each neuron's scores; NaN where silencing affects no token."""
    found: dict[str, list[float]] = {"auc": [], "precision": []}
    for score_W, affected_W in zip(score_SW, affected_SW, strict=True):
        found["auc"].append(auc(score_W, affected_W))
        hits = precision(score_W, affected_W, config.first) if affected_W.any() else np.nan
        found["precision"].append(hits)
    return found


def summaries(judged: pd.DataFrame, config: FaithfulnessConfig) -> Iterator[dict[str, object]]:
    """``SELECTIONS``: each claim over the neurons of each unit."""
    for labels, rows in judged.groupby([*LABELS, "baseline"], sort=False):
        found: dict[str, object] = dict(zip((*LABELS, "baseline"), labels, strict=True))
        found["neurons"] = len(rows)
        for name in ("auc", "precision"):
            ends = interval(rows[name].to_numpy(), resamples=config.resamples, seed=config.seed)
            found |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        yield found


def best_of(selections: pd.DataFrame) -> pd.DataFrame:
    """Of each evidence the background and statistic with the highest mean AUC over all units."""
    claim = LABELS[1:]
    mean = selections.groupby(claim, sort=False)["auc"].mean().reset_index()
    best = mean.loc[mean.groupby("evidence", sort=False)["auc"].idxmax(), claim]
    return selections.merge(best, on=claim)
