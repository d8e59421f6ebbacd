"""Evaluation of attribution methods against the measured effects of ablation.

1. Draw some neurons of every MLP unit at random.
2. Ablate each neuron (set its column to zero) on text. For every token that is the target at enough
   positions, measure the mean change of its log-probability. The *affected* tokens are those with
   the highest lower bound on the size of this change, in either direction. The bound matters
   because a large mean over few positions is often chance.
3. Every method (``analysis.faithfulness.methods``) ranks the same tokens. Its AUC is the
   probability that an affected token outranks another one. Its precision is the share of affected
   tokens among the first few.

The ground truth is noisy. Its split-half reliability says how noisy: the effects on one half of the
text rank the tokens and are evaluated against the other half. It is no upper bound, because
evidence from all of training may carry more information than half of a small text.

Tokens that a statistic excludes (those with no more evidence than expected, except under ``study``)
tie at the end of the ranking. The best background and statistic of an evidence are chosen on the
same neurons that it is evaluated on, so its AUC is slightly too high.

The text is held out by default, so a method gets no credit for what the model memorised from the
datums that the method's evidence comes from. ``text="train"`` evaluates on training text instead.

Shapes: S neuron, V token of the vocabulary, W ranked token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.ablation.log_probability import TokenChanges
from analysis.ablation.subjects import Subject
from analysis.faithfulness.ground_truth import (
    AblationEffects,
    FaithfulnessConfig,
    Report,
    draw_neurons,
    measure_effects,
)
from analysis.faithfulness.methods import ScoringMethod, scoring_methods
from analysis.jobs.job import Runner
from analysis.jobs.question import Question
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import concat_frames, table_set, write_tables
from analysis.measures.ranking import affected, auc, interval, precision
from analysis.run.run import Run

JOB = "faithfulness"
LABELS = ["unit", "evidence", "background", "select"]
SPLIT_HALF = "half of the text on the other"
"""Stored label of the split-half reliability of the ground truth."""

MEASURES = [
    pa.field("neurons", pa.int32()),  # number of evaluated neurons
    pa.field("auc", pa.float64()),  # mean over neurons: P(affected outranks another)
    pa.field("auc_low", pa.float64()),  # 95 % bootstrap interval over neurons
    pa.field("auc_high", pa.float64()),
    pa.field("precision", pa.float64()),  # mean share of affected tokens among the first few
    pa.field("precision_low", pa.float64()),
    pa.field("precision_high", pa.float64()),
]
METHOD_FIELDS = [
    pa.field("evidence", pa.string()),
    pa.field("background", pa.string()),  # unit, train or empty
    pa.field("select", pa.string()),  # statistic, or empty
]
SCORES = pa.schema(
    [pa.field("unit", pa.string()), *METHOD_FIELDS, *MEASURES, pa.field("baseline", pa.bool_())]
)
"""One row per unit and evidence, with its best background and statistic over all units.

``baseline``: the method needs no record of training.
"""
SELECTIONS = SCORES
"""Like ``SCORES``, with every background and statistic."""
NEURONS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("neuron", pa.int32()),
        *METHOD_FIELDS,
        pa.field("auc", pa.float64()),
        pa.field("precision", pa.float64()),
    ]
)
"""One row per neuron and method."""
TABLES = {"scores": SCORES, "selections": SELECTIONS, "neurons": NEURONS}


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How well each method predicts ablation effects, by unit and by neuron."""

    scores: pd.DataFrame
    """``SCORES``"""
    selections: pd.DataFrame
    """``SELECTIONS``"""
    neurons: pd.DataFrame
    """``NEURONS``"""
    tokens: int
    """Number of ranked tokens."""
    positions: int
    """Number of positions of the evaluation text."""


def faithfulness(
    run: Run,
    run_job: Runner,
    config: FaithfulnessConfig,
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> Faithfulness:
    """Evaluate every method against ablation.

    With ``config.step``, the model is the one after so many updates, and the evidence is what was
    recorded until then. ``report`` is called with the number of (neuron, datum) pairs done and
    their total. Raises ``RunError`` if the run has no text of the kind, no outliers, no neurons, or
    too little text to rank tokens.
    """
    run.require_shards("outliers")
    subjects = draw_neurons(run, config)
    effects = measure_effects(run, subjects, config, report, sweep)
    affected_SW = affected_tokens(effects, effects.whole, config)
    evaluated = [
        evaluate(method, effects.token_W, affected_SW, subjects, config)
        for method in scoring_methods(run, run_job, subjects, config)
    ]
    evaluated.append(split_half(effects, subjects, config))
    neurons = pd.concat(evaluated, ignore_index=True)
    selections = pd.DataFrame(summaries(neurons, config))
    return Faithfulness(
        scores=concat_frames([best_of(selections)], SCORES),
        selections=concat_frames([selections], SELECTIONS),
        neurons=concat_frames([neurons], NEURONS),
        tokens=len(effects.token_W),
        positions=int(effects.whole.count_V.sum()),
    )


def write_faithfulness(
    run: Run, found: Faithfulness, question: Question | None = None, name: str = ""
) -> None:
    """Write the tables to ``run.tables``, as the set with this name."""
    write_tables(run, table_set(JOB, name), vars(found), TABLES, question)


# --- evaluation -----------------------------------------------------------------------------------


def affected_tokens(
    effects: AblationEffects, changes: TokenChanges, config: FaithfulnessConfig
) -> np.ndarray:
    """Return which ranked tokens ablation affects, according to ``changes``, bool [S, W]."""
    return np.stack([affected(size_W, config.affected) for size_W in effects.effect_sizes(changes)])


def evaluate(
    method: ScoringMethod,
    token_W: np.ndarray,
    affected_SW: np.ndarray,
    subjects: Sequence[Subject],
    config: FaithfulnessConfig,
) -> pd.DataFrame:
    """Build ``NEURONS`` of one method, with the column ``baseline`` added."""
    return pd.DataFrame(
        {
            "unit": [subject.unit for subject in subjects],
            "neuron": [subject.group for subject in subjects],
            "evidence": method.evidence,
            "background": method.background,
            "select": method.select,
            "baseline": method.baseline,
            **ranked(method.score_SV[:, token_W], affected_SW, config),
        }
    )


def split_half(
    effects: AblationEffects, subjects: Sequence[Subject], config: FaithfulnessConfig
) -> pd.DataFrame:
    """Return the split-half reliability: the mean of either half evaluated against the other."""
    one, other = (
        evaluate(
            ScoringMethod(SPLIT_HALF, "", "", half_scores(effects, half), baseline=True),
            effects.token_W,
            affected_tokens(effects, rest, config),
            subjects,
            config,
        )
        for half, rest in ((effects.first, effects.second), (effects.second, effects.first))
    )
    return one.assign(**{name: (one[name] + other[name]) / 2 for name in ("auc", "precision")})


def half_scores(effects: AblationEffects, half: TokenChanges) -> np.ndarray:
    """Return the effect sizes on one half of the text as a score of every token, [S, V]."""
    score_SV = np.zeros(half.change_SV.shape)
    score_SV[:, effects.token_W] = effects.effect_sizes(half)
    return score_SV


def ranked(
    score_SW: np.ndarray, affected_SW: np.ndarray, config: FaithfulnessConfig
) -> dict[str, list[float]]:
    """Return AUC and precision of each neuron's scores; NaN if ablation affects no token."""
    found: dict[str, list[float]] = {"auc": [], "precision": []}
    for score_W, affected_W in zip(score_SW, affected_SW, strict=True):
        found["auc"].append(auc(score_W, affected_W))
        hits = precision(score_W, affected_W, config.first) if affected_W.any() else np.nan
        found["precision"].append(hits)
    return found


def summaries(evaluated: pd.DataFrame, config: FaithfulnessConfig) -> Iterator[dict[str, object]]:
    """Yield the rows of ``SELECTIONS``: each method over the neurons of each unit."""
    for labels, rows in evaluated.groupby([*LABELS, "baseline"], sort=False):
        found: dict[str, object] = dict(zip((*LABELS, "baseline"), labels, strict=True))
        found["neurons"] = len(rows)
        for name in ("auc", "precision"):
            ends = interval(rows[name].to_numpy(), resamples=config.resamples, seed=config.seed)
            found |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        yield found


def best_of(selections: pd.DataFrame) -> pd.DataFrame:
    """Keep, for each evidence, the background and statistic of highest mean AUC over units."""
    method = LABELS[1:]
    mean = selections.groupby(method, sort=False)["auc"].mean().reset_index()
    best = mean.loc[mean.groupby("evidence", sort=False)["auc"].idxmax(), method]
    return selections.merge(best, on=method)
