"""Everything that claims to know which tokens a neuron matters for, as scores to be compared.

A claim is a score for every token of every neuron: the higher, the more the neuron is said to
matter. Attribution makes many: an evidence (outlier rows or tallies) is laid beside a background
and a statistic turns the two into scores (``analysis.measures.selection``). To these come baselines
that need no record.

Shapes: S neuron, V token of the vocabulary, G named group of the level "neuron".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.ablation.subjects import Subject
from analysis.activations.scores import activation_scores, activation_statistics
from analysis.attribution.config import BACKGROUNDS, AttributionConfig, Background
from analysis.attribution.row_evidence import material_of
from analysis.attribution.row_passes import OutlierRows
from analysis.attribution.tally_evidence import Tallies
from analysis.attribution.token_evidence import Material, choose_some
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
"""Tallies that are also asked about the last window of training alone."""
EVERY_TOKEN = SelectionConfig(
    min_count=1,
    most_frequent=2**31,
    most_counted=2**31,
    most=2**31,
    min_observations=0,
    max_q=1,
)
"""Scores for all tokens that a statistic does not rule out by itself."""


@dataclass(frozen=True, eq=False)
class ScoringMethod:
    """Scores that are put to the test."""

    evidence: str
    background: str
    """unit or train, as in ``attribute``; "" where there is none."""
    select: str
    """The statistic, as in ``attribute``."""
    score_SV: np.ndarray
    baseline: bool = False
    """Whether it needs no record of training."""


def scoring_methods(
    run: Run, run_job: Runner, subjects: Sequence[Subject], seed: int
) -> Iterator[ScoringMethod]:
    """All claims, one after the other; those from tallies only if the run has them."""
    yield from baselines(run, subjects, seed)
    groups = groups_at("neuron", run.layout, heads=1)
    place_S = group_indices(groups, subjects)
    for name, config in OUTLIER_EVIDENCE.items():
        rows = OutlierRows.of(run, run_job, config)
        collected = rows.collect(groups, tokens=True)
        yield from attribution_methods(name, material_of(rows, groups, collected), place_S)
    if not run.shards("tallies"):
        return
    for name, config in TALLY_EVIDENCE.items():
        yield from attribution_methods(name, Tallies.of(run, config).material(), place_S)
    last = int(tally_windows(run)["first_step"].iloc[-1])
    for name in LAST_WINDOW:
        config = replace(TALLY_EVIDENCE[name], first_step=last)
        material = Tallies.of(run, config).material()
        yield from attribution_methods(f"{name}, last window", material, place_S)


def group_indices(groups: Groups, subjects: Sequence[Subject]) -> np.ndarray:
    """Where each neuron stands among the groups."""
    known = {pair: g for g, pair in enumerate(zip(groups.units, groups.number_G, strict=True))}
    return np.array([known[subject.unit, subject.group] for subject in subjects])


# --- attribution ----------------------------------------------------------------------------------


def attribution_methods(
    name: str, material: Material, place_S: np.ndarray
) -> Iterator[ScoringMethod]:
    """The claims of one evidence: every background with every statistic."""
    for background in BACKGROUNDS:
        for select in METHODS:
            yield ScoringMethod(
                name, background, select, attribution_scores(material, place_S, background, select)
            )


def attribution_scores(
    material: Material, place_S: np.ndarray, background: Background, select: Method
) -> np.ndarray:
    """A statistic's score of every token, float32; what it rules out lies below all others.

    The study's heuristic has no score of its own: it ranks by relative frequency first.
    """
    score_SV = np.full((len(place_S), len(material.train_V)), -np.inf, np.float32)
    for s, place in enumerate(place_S):
        own = slice(int(place), int(place) + 1)
        found = choose_some(material, own, select, background, EVERY_TOKEN)
        column = "relative_frequency" if select == "study" else "score"
        score_SV[s, found["token_id"]] = found[column]
    return score_SV


# --- without a record -----------------------------------------------------------------------------


def baselines(run: Run, subjects: Sequence[Subject], seed: int) -> Iterator[ScoringMethod]:
    """Chance, how often a token occurs, and the activations of the last model."""
    shape = len(subjects), run.num_tokens
    count_V = np.bincount(run.target_NT.ravel(), minlength=run.num_tokens)
    random_SV = np.random.default_rng(seed).random(shape, np.float32)
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
        found = activation_statistics(run.model(), *text, by=by, units=units)
        score_VI = {unit: activation_scores(stats) for unit, stats in found.items()}
        score_SV = np.stack([score_VI[subject.unit][:, subject.group] for subject in subjects])
        yield ScoringMethod(f"activations by {by}", "", "", score_SV, baseline=True)
