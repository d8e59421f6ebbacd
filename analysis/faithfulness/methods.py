"""Methods that score which tokens a neuron matters for.

A method gives every token of every neuron a score; a higher score predicts a larger ablation
effect. Attribution provides many methods: a statistic (``analysis.measures.selection``) turns an
evidence, from outlier rows or tallies, and a background into scores. Baselines that need no record
of training complete the list.

Shapes: S neuron, V token of the vocabulary, G named group of the level "neuron".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.ablation.subjects import Subject
from analysis.activations.scores import activation_scores, activation_statistics
from analysis.attribution.config import BACKGROUNDS, AttributionConfig, Background
from analysis.attribution.row_evidence import evidence_from_rows
from analysis.attribution.row_passes import OutlierRows
from analysis.attribution.tally_evidence import TallyEvidence
from analysis.attribution.token_evidence import TokenEvidence, choose_in_groups
from analysis.faithfulness.ground_truth import FaithfulnessConfig
from analysis.jobs.job import Runner
from analysis.levels import Groups, groups_at
from analysis.measures.selection import METHODS, Method, SelectionConfig
from analysis.run.run import Run
from analysis.run.tallies import tally_windows

OUTLIER_EVIDENCE: dict[str, AttributionConfig] = {
    "window tokens": AttributionConfig(evidence="window"),
    "input tokens": AttributionConfig(evidence="input"),
    "target tokens": AttributionConfig(evidence="target"),
    "target tokens by |shift|": AttributionConfig(evidence="target", weight="shift"),
    "target tokens by effect": AttributionConfig(evidence="target", weight="effect"),
}
TALLY_EVIDENCE: dict[str, AttributionConfig] = {
    "input update norm": AttributionConfig(evidence="input-update-norm"),
    "input ablation estimate": AttributionConfig(evidence="input-ablation-estimate"),
    "update norm": AttributionConfig(evidence="update-norm"),
    "ablation estimate": AttributionConfig(evidence="ablation-estimate"),
    "geometric mean": AttributionConfig(evidence="geometric-mean"),
}
LAST_WINDOW = ("update norm", "ablation estimate", "geometric mean")
"""Tally evidence that is also evaluated on the last window of training alone."""
EVERY_TOKEN = SelectionConfig(
    min_count=1,
    most_frequent=2**31,
    most_counted=2**31,
    most=2**31,
    min_observations=0,
    max_q=1,
)
"""Settings that keep every token that a statistic does not exclude by itself."""


@dataclass(frozen=True, eq=False)
class ScoringMethod:
    """The scores of one method, to be evaluated against ablation."""

    evidence: str
    background: str
    """unit or train, as in ``attribute``; "" for a method without background."""
    select: str
    """The statistic, as in ``attribute``; "" for a method without one."""
    score_SV: np.ndarray
    baseline: bool = False
    """Whether the method needs no record of training."""


def scoring_methods(
    run: Run, run_job: Runner, subjects: Sequence[Subject], chosen: FaithfulnessConfig
) -> Iterator[ScoringMethod]:
    """Yield every method; those from tallies if a window of them ends by the chosen step."""
    yield from baselines(run, subjects, chosen)
    groups = groups_at("neuron", run.layout, heads=1)
    index_S = group_indices(groups, subjects)
    for name, config in OUTLIER_EVIDENCE.items():
        rows = OutlierRows.of(run, run_job, replace(config, end_step=chosen.step))
        collected = rows.collect(groups, tokens=True)
        yield from attribution_methods(name, evidence_from_rows(rows, groups, collected), index_S)
    windows = tally_windows(run) if run.shards("tallies") else None
    if windows is not None and chosen.step is not None:
        windows = windows[windows["end_step"] <= chosen.step]
    if windows is None or windows.empty:
        return
    for name, config in TALLY_EVIDENCE.items():
        config = replace(config, end_step=chosen.step)
        yield from attribution_methods(name, TallyEvidence.of(run, config).evidence(), index_S)
    last = int(windows["first_step"].iloc[-1])
    for name in LAST_WINDOW:
        config = replace(TALLY_EVIDENCE[name], first_step=last, end_step=chosen.step)
        evidence = TallyEvidence.of(run, config).evidence()
        yield from attribution_methods(f"{name}, last window", evidence, index_S)


def group_indices(groups: Groups, subjects: Sequence[Subject]) -> np.ndarray:
    """Return the index of each neuron among the groups, [S]."""
    known = {pair: g for g, pair in enumerate(zip(groups.units, groups.number_G, strict=True))}
    return np.array([known[subject.unit, subject.group] for subject in subjects])


# --- attribution ----------------------------------------------------------------------------------


def attribution_methods(
    name: str, evidence: TokenEvidence, index_S: np.ndarray
) -> Iterator[ScoringMethod]:
    """Yield the methods of one evidence: every background with every statistic."""
    for background in BACKGROUNDS:
        for select in METHODS:
            yield ScoringMethod(
                name, background, select, attribution_scores(evidence, index_S, background, select)
            )


def attribution_scores(
    evidence: TokenEvidence, index_S: np.ndarray, background: Background, select: Method
) -> np.ndarray:
    """Return a statistic's score of every token, float32 [S, V]; −∞ for tokens it excludes.

    The study's heuristic is scored by relative frequency, which it ranks by first.
    """
    score_SV = np.full((len(index_S), len(evidence.train_V)), -np.inf, np.float32)
    for s, index in enumerate(index_S):
        own = slice(int(index), int(index) + 1)
        found = choose_in_groups(evidence, own, select, background, EVERY_TOKEN)
        column = "relative_frequency" if select == "study" else "score"
        score_SV[s, found["token_id"]] = found[column]
    return score_SV


# --- without a record -----------------------------------------------------------------------------


def baselines(
    run: Run, subjects: Sequence[Subject], chosen: FaithfulnessConfig
) -> Iterator[ScoringMethod]:
    """Yield the baselines: chance, token frequency, and activations of the chosen model."""
    shape = len(subjects), run.num_tokens
    count_V = np.bincount(run.target_NT.ravel(), minlength=run.num_tokens)
    random_SV = np.random.default_rng(chosen.seed).random(shape, np.float32)
    yield ScoringMethod("random", "", "", random_SV, baseline=True)
    yield ScoringMethod(
        "frequent tokens", "", "", np.tile(count_V.astype("f4"), (len(subjects), 1)), True
    )
    yield ScoringMethod(
        "rare tokens", "", "", np.tile(-count_V.astype("f4"), (len(subjects), 1)), True
    )
    units = list(dict.fromkeys(subject.unit for subject in subjects))
    text = run.token_NT, run.target_NT, run.num_tokens
    for by in ("input", "target"):
        found = activation_statistics(run.parted(chosen.step), *text, by=by, units=units)
        score_VI = {unit: activation_scores(stats) for unit, stats in found.items()}
        score_SV = np.stack([score_VI[subject.unit][:, subject.group] for subject in subjects])
        yield ScoringMethod(f"activations by {by}", "", "", score_SV, baseline=True)
