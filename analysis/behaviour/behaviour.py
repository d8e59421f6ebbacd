"""What did the data behind a named behaviour move? The study's proposal for attention heads.

Instead of asking which tokens taught a neuron, name a behaviour (datums that contain a closing
parenthesis, say) and ask which units, heads and neurons its datums moved more than others did.

1. Select the datums that show it (``analysis.behaviour.predicates``).
2. Give each some controls: datums alike but for the behaviour (``analysis.behaviour.matching``).
3. Add up, for every datum, its outlier rows and their |shift| by unit, head and neuron
   (``analysis.behaviour.datum_sums``, one pass over the shards).
4. Compare the two classes (``analysis.behaviour.contrast``), with q over all groups of a level and
   measure.

Datums are the independent observations, however many rows each has. What is measured of them says
``analysis.behaviour.tables``.

Shapes: N datum, T position, K chosen datum, S selected datum.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.behaviour.contrast import Draw
from analysis.behaviour.datum_sums import SumByDatum, cells_of
from analysis.behaviour.matching import Matched, balance, covariates, match
from analysis.behaviour.predicates import Predicate, select_datums
from analysis.behaviour.tables import (
    CONTRASTS,
    LEVELS,
    captured_levels,
    compare_classes,
    compare_positions,
)
from analysis.jobs.job import Runner
from analysis.jobs.tables import joined, write_tables
from analysis.run.names import token_id
from analysis.run.run import Run
from capture.errors import RunError, at_least

JOB = "behaviour"

SUMMARY = pa.schema(
    [
        pa.field("behaviour", pa.string()),  # the condition, in words
        pa.field("datums", pa.int64()),  # training datums that show it
        pa.field("selected", pa.int64()),  # of these, compared: seen by training, at most so many
        pa.field("controls", pa.int64()),  # distinct datums that they are compared with
        pa.field("others", pa.int64()),  # datums that could have been controls
    ]
)
"""One row."""

SELECTION = pa.schema(
    [
        pa.field("datum", pa.int32()),
        pa.field("selected", pa.bool_()),
        pa.field("matched_to", pa.int32()),  # of a control: whose; -1 for a selected datum
    ]
)
"""One row a selected datum, and one each time a datum is a control."""

BALANCE = pa.schema(
    [
        pa.field("covariate", pa.string()),  # see analysis.behaviour.matching
        pa.field("selected_mean", pa.float64()),
        pa.field("control_mean", pa.float64()),
        pa.field("standardised_difference", pa.float64()),  # in standard deviations of all datums
    ]
)
"""How alike selected datums and controls are; a difference below 0.1 is usually called balanced."""

TABLES = {
    "summary": SUMMARY,
    "selection": SELECTION,
    "balance": BALANCE,
    "units": CONTRASTS,
    "heads": CONTRASTS,
    "neurons": CONTRASTS,
}


@dataclass(frozen=True, kw_only=True)
class BehaviourConfig:
    """How many datums are compared, and how precisely."""

    max_datums: int = 2000
    """Of more selected datums, so many are drawn."""
    controls: int = 5
    """Controls of each selected datum."""
    resamples: int = 1000
    """Bootstrap resamples behind an interval."""
    seed: int = 0
    """Of all drawing."""

    def __post_init__(self) -> None:
        for name, least in (("max_datums", 2), ("controls", 1), ("resamples", 1), ("seed", 0)):
            at_least(f"behaviour.{name}", getattr(self, name), least)


@dataclass(frozen=True, eq=False)
class Behaviour:
    """What the datums behind a behaviour moved."""

    summary: pd.DataFrame
    """``SUMMARY``"""
    selection: pd.DataFrame
    """``SELECTION``"""
    balance: pd.DataFrame
    """``BALANCE``"""
    units: pd.DataFrame
    """``CONTRASTS``"""
    heads: pd.DataFrame
    """``CONTRASTS``; empty if no attention was captured."""
    neurons: pd.DataFrame
    """``CONTRASTS``; empty if no MLP unit was captured."""


def find_moved(
    run: Run, run_job: Runner, predicate: Predicate, config: BehaviourConfig
) -> Behaviour:
    """Compare the datums that show a behaviour with others like them.

    Raises ``RunError`` if nothing is recorded yet, if the run lacks a token or datum, or if too few
    datums are left on either side; ``ConfigError`` for a bad pattern.
    """
    shards = run.require_shards("outliers")
    shows_N, visits_N = select_datums(run, predicate), count_visits(run)
    matched, others = choose_datums(run, predicate, shows_N, visits_N, config)
    chosen_K = np.union1d(matched.selected_S, matched.control_SK)
    place_N = np.full(run.num_datums, -1)
    place_N[chosen_K] = np.arange(len(chosen_K))
    cells = cells_of(captured_levels(run.layout, run.config.model.heads))
    marked_KT = marked_positions(run, predicate, chosen_K)
    job = SumByDatum(run.layout, cells, place_N, len(chosen_K), marked_KT)
    sums = run_job(job, shards)
    places = Matched(place_N[matched.selected_S], place_N[matched.control_SK])
    draw = Draw(config.resamples, config.seed)
    tables = list(compare_classes(cells, sums, places, visits_N[chosen_K], draw))
    if predicate.target is not None:
        tables += compare_positions(cells, sums, places.selected_S, draw)
    summary = {
        "behaviour": f"datums that {predicate}",
        "datums": int(shows_N.sum()),
        "selected": len(matched.selected_S),
        "controls": len(np.unique(matched.control_SK)),
        "others": others,
    }
    return Behaviour(
        joined([pd.DataFrame([summary])], SUMMARY),
        joined([selection_table(matched)], SELECTION),
        joined([balance(covariates_of(run, visits_N), matched)], BALANCE),
        *(
            joined([table for level, table in tables if level == name], CONTRASTS)
            for name in LEVELS
        ),
    )


def write_behaviour(run: Run, found: Behaviour) -> None:
    """Leave the tables in the run, under ``analysis/behaviour/``, in the place of the last ones."""
    write_tables(run, JOB, vars(found), TABLES)


# --- which datums ---------------------------------------------------------------------------------


def count_visits(run: Run) -> np.ndarray:
    """How often each training datum was in a committed step, [N]."""
    return np.bincount(np.concatenate(run.steps()["datums"].tolist()), minlength=run.num_datums)


def choose_datums(
    run: Run,
    predicate: Predicate,
    shows_N: np.ndarray,
    visits_N: np.ndarray,
    config: BehaviourConfig,
) -> tuple[Matched, int]:
    """Selected datums, drawn if there are many, with controls; and how many could be controls."""
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
    """Where the target of the predicate is, [K, T]; nowhere if it is about no target."""
    if predicate.target is None:
        return np.zeros((len(datum_K), run.token_NT.shape[1]), bool)
    return run.target_NT[datum_K] == token_id(run.tokens, predicate.target)


def selection_table(matched: Matched) -> pd.DataFrame:
    """``SELECTION``: selected datums by id, then controls by whose they are, nearest first."""
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
