"""Find the units, heads and neurons that the datums of a named behaviour moved more than others.

This is the study's proposal for attention heads. A behaviour is a condition on datums, for instance
that they contain a closing parenthesis.

1. Select the datums that show the behaviour (``analysis.behaviour.predicates``).
2. Match each with controls: similar datums without the behaviour (``analysis.behaviour.matching``).
3. Sum the outlier rows and the |shift| of each datum by unit, head and neuron, in one pass over the
   shards (``analysis.behaviour.datum_sums``).
4. Compare the two classes (``analysis.behaviour.contrast``), with q-values over all groups of a
   level and measure.

Datums are the independent observations, no matter how many rows each has. The measures are those of
``analysis.behaviour.tables``.

Shapes: N datum, T position, K chosen datum, S selected datum.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.behaviour.contrast import BootstrapSettings
from analysis.behaviour.datum_sums import SumRowsByDatum, finest_cells
from analysis.behaviour.matching import MatchedControls, balance, covariates, match
from analysis.behaviour.predicates import Predicate, select_datums
from analysis.behaviour.tables import (
    CONTRASTS,
    LEVELS,
    captured_levels,
    compare_classes,
    compare_positions,
)
from analysis.jobs.job import Runner
from analysis.jobs.question import Question
from analysis.jobs.tables import concat_frames, table_set, write_tables
from analysis.lifetime.run import lifetime_run, require_positions
from analysis.run.datums.recorded_steps import recorded_datums
from analysis.run.names import token_id
from analysis.run.run import Run
from capture.errors import RunError, at_least

JOB = "behaviour"

SUMMARY = pa.schema(
    [
        pa.field("behaviour", pa.string()),  # the condition as a phrase
        pa.field("datums", pa.int64()),  # training datums that show the behaviour
        pa.field("selected", pa.int64()),  # those compared: visited by training, at most max_datums
        pa.field("controls", pa.int64()),  # distinct control datums
        pa.field("others", pa.int64()),  # candidates for controls
    ]
)
"""One row."""

SELECTION = pa.schema(
    [
        pa.field("datum", pa.int32()),
        pa.field("selected", pa.bool_()),
        pa.field("matched_to", pa.int32()),  # selected datum of a control; -1 for a selected datum
    ]
)
"""One row per selected datum, and one per use of a datum as a control."""

BALANCE = pa.schema(
    [
        pa.field("covariate", pa.string()),  # one of matching.COVARIATES
        pa.field("selected_mean", pa.float64()),
        pa.field("control_mean", pa.float64()),
        pa.field("standardised_difference", pa.float64()),  # in standard deviations over all datums
    ]
)
"""Similarity of selected datums and controls; below 0.1 usually counts as balanced."""

CONFIRMED = pa.schema(
    [
        pa.field("level", pa.string()),  # head or neuron
        pa.field("unit", pa.string()),
        pa.field("group", pa.int32()),  # number of the head or neuron
        pa.field("moved", pa.bool_()),  # among those moved most; else a control drawn at random
        pa.field("ratio", pa.float64()),  # as in CONTRASTS, of the measure rows
        pa.field("q", pa.float64()),
        pa.field("positions", pa.int64()),  # held-out positions that show the behaviour
        pa.field("change", pa.float64()),  # there: mean of log p(target), silenced - clean, nats
        pa.field("low", pa.float64()),  # its 95 % interval over datums
        pa.field("high", pa.float64()),
        pa.field("elsewhere", pa.float64()),  # the same mean at all other held-out positions
        pa.field("difference", pa.float64()),  # change - elsewhere; below 0: harms the behaviour
        pa.field("difference_low", pa.float64()),  # its 95 % interval over datums
        pa.field("difference_high", pa.float64()),
    ]
)
"""One row per silenced head or neuron, the moved ones of a level first; empty unless confirmed."""

CONFIRMATION = pa.schema(
    [
        pa.field("level", pa.string()),  # head or neuron
        pa.field("moved", pa.int32()),  # number of moved groups that were silenced
        pa.field("controls", pa.int32()),
        pa.field("moved_difference", pa.float64()),  # mean of CONFIRMED.difference, nats
        pa.field("control_difference", pa.float64()),
        pa.field("p", pa.float64()),  # one-sided, Mann-Whitney: moved below controls
    ]
)
"""One row per level; empty unless confirmed."""

TABLES = {
    "summary": SUMMARY,
    "selection": SELECTION,
    "balance": BALANCE,
    "units": CONTRASTS,
    "heads": CONTRASTS,
    "neurons": CONTRASTS,
    "confirmed": CONFIRMED,
    "confirmation": CONFIRMATION,
}


@dataclass(frozen=True, kw_only=True)
class BehaviourConfig:
    """Numbers of datums, controls and bootstrap resamples."""

    max_datums: int = 2000
    """Largest number of selected datums; of more, this many are drawn at random."""
    controls: int = 5
    """Controls per selected datum."""
    resamples: int = 1000
    """Bootstrap resamples for each interval."""
    seed: int = 0
    """Seed of all random draws."""
    lifetime: bool = False
    """Whether shifts are lifetime shifts (``analysis.lifetime``), not those of one step."""

    def __post_init__(self) -> None:
        for name, least in (("max_datums", 2), ("controls", 1), ("resamples", 1), ("seed", 0)):
            at_least(f"behaviour.{name}", getattr(self, name), least)


@dataclass(frozen=True, eq=False)
class Behaviour:
    """The result of ``analyse_behaviour``."""

    summary: pd.DataFrame
    """``SUMMARY``"""
    selection: pd.DataFrame
    """``SELECTION``"""
    balance: pd.DataFrame
    """``BALANCE``"""
    units: pd.DataFrame
    """``CONTRASTS``"""
    heads: pd.DataFrame
    """``CONTRASTS``; empty if no attention unit is captured."""
    neurons: pd.DataFrame
    """``CONTRASTS``; empty if no MLP unit is captured."""
    confirmed: pd.DataFrame = field(default_factory=lambda: CONFIRMED.empty_table().to_pandas())
    """``CONFIRMED``"""
    confirmation: pd.DataFrame = field(
        default_factory=lambda: CONFIRMATION.empty_table().to_pandas()
    )
    """``CONFIRMATION``"""


def analyse_behaviour(
    run: Run, run_job: Runner, predicate: Predicate, config: BehaviourConfig
) -> Behaviour:
    """Compare the datums that show a behaviour with matched controls.

    Raises ``RunError`` if no segment is committed, if the run lacks a datum, or if either class has
    too few datums; ``ConfigError`` for an unknown token or an invalid pattern; with
    ``config.lifetime`` also what ``lifetime_run`` raises.
    """
    if config.lifetime:
        run = lifetime_run(run)
        if predicate.target is not None:
            require_positions(run)
    shards = run.require_shards("outliers")
    shows_N, visits_N = select_datums(run, predicate), count_visits(run)
    matched, num_candidates = choose_datums(run, predicate, shows_N, visits_N, config)
    chosen_K = np.union1d(matched.selected_S, matched.control_SK)
    chosen_N = np.full(run.num_datums, -1)
    chosen_N[chosen_K] = np.arange(len(chosen_K))
    levels = captured_levels(run.layout, run.num_heads, run.head_blocks)
    cells = finest_cells(levels)
    marked_KT = marked_positions(run, predicate, chosen_K)
    job = SumRowsByDatum(run.layout, cells, chosen_N, len(chosen_K), marked_KT)
    sums = run_job(job, shards)
    row_indices = MatchedControls(chosen_N[matched.selected_S], chosen_N[matched.control_SK])
    bootstrap = BootstrapSettings(config.resamples, config.seed)
    tables = list(compare_classes(cells, sums, row_indices, visits_N[chosen_K], bootstrap))
    if predicate.target is not None:
        tables += compare_positions(cells, sums, row_indices.selected_S, bootstrap)
    summary = {
        "behaviour": f"datums that {predicate}",
        "datums": int(shows_N.sum()),
        "selected": len(matched.selected_S),
        "controls": len(np.unique(matched.control_SK)),
        "others": num_candidates,
    }
    return Behaviour(
        concat_frames([pd.DataFrame([summary])], SUMMARY),
        concat_frames([selection_table(matched)], SELECTION),
        concat_frames([balance(covariates_of(run, visits_N), matched)], BALANCE),
        *(
            concat_frames([table for level, table in tables if level == name], CONTRASTS)
            for name in LEVELS
        ),
    )


def write_behaviour(
    run: Run, found: Behaviour, question: Question | None = None, name: str = ""
) -> None:
    """Write the tables to ``run.tables``, as the set with this name."""
    write_tables(run, table_set(JOB, name), vars(found), TABLES, question)


# --- selection of datums --------------------------------------------------------------------------


def count_visits(run: Run) -> np.ndarray:
    """Return the number of steps with outliers that visited each training datum, [N]."""
    visits = recorded_datums(run, "outliers", range(run.steps_done))
    return np.bincount(visits, minlength=run.num_datums)


def choose_datums(
    run: Run,
    predicate: Predicate,
    shows_N: np.ndarray,
    visits_N: np.ndarray,
    config: BehaviourConfig,
) -> tuple[MatchedControls, int]:
    """Selected datums with their controls, and the number of candidates for controls."""
    selected_S = np.flatnonzero(shows_N & (visits_N > 0))
    candidate_N = ~shows_N & (visits_N > 0)
    seen, others = int((visits_N > 0).sum()), int(candidate_N.sum())
    if len(selected_S) < 2:
        problem = f"{len(selected_S)} of {seen} datums seen by training {predicate}"
        raise RunError(run.uri, f"{problem}, at least 2 must", "Widen the condition")
    if others < (wanted := max(2, config.controls)):
        problem = f"all but {others} of {seen} datums seen by training {predicate}"
        remedy = "Narrow it, or ask for fewer controls"
        raise RunError(run.uri, f"{problem}, at least {wanted} must not", remedy)
    if len(selected_S) > config.max_datums:
        rng = np.random.default_rng(config.seed)
        selected_S = np.sort(rng.choice(selected_S, config.max_datums, replace=False))
    covariate_NC = covariates_of(run, visits_N)
    return match(covariate_NC, selected_S, candidate_N, config.controls, config.seed), others


def covariates_of(run: Run, visits_N: np.ndarray) -> np.ndarray:
    return covariates(run.token_NT, run.vocabulary()["count"].to_numpy(), visits_N)


def marked_positions(run: Run, predicate: Predicate, datum_K: np.ndarray) -> np.ndarray:
    """Positions whose target is that of the predicate, bool [K, T]; none without a target."""
    target_KT = run.recorded_target_NT[datum_K]
    if predicate.target is None:
        return np.zeros(target_KT.shape, bool)
    return target_KT == token_id(run.tokens, predicate.target)


def selection_table(matched: MatchedControls) -> pd.DataFrame:
    """``SELECTION``: selected datums by id, then the controls of each, nearest first."""
    selected_S, num_controls = matched.selected_S, matched.control_SK.shape[1]
    return pd.DataFrame(
        {
            "datum": np.concatenate([selected_S, matched.control_SK.ravel()]),
            "selected": np.arange(matched.control_SK.size + len(selected_S)) < len(selected_S),
            "matched_to": np.concatenate(
                [np.full(len(selected_S), -1), np.repeat(selected_S, num_controls)]
            ),
        }
    )
