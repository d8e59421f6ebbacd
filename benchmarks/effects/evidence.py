"""The evidence of ``ontogeny attribute`` as scores of training datums for neurons and heads.

Attribution names tokens, and for outliers also datums. A datum scores what the evidence gives to
its positions: Σ over its targets (or inputs) of the mean evidence per position of such a token.

Shapes: Q query, D datum, T position, V vocabulary, G neuron of all units.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.ablation.subjects import Level
from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig, Evidence
from analysis.attribution.outlier_weights import Weight
from analysis.attribution.tables import Attribution
from analysis.attribution.tally_evidence import TallyEvidence
from analysis.influence.queries.query import Query
from analysis.run.run import Run
from cluster.local.threads import run_job

SHIFTS, ROWS = "outliers of the subject, sum", "outliers of the subject, number"
CHOSEN, STUDY = "tokens that attribute names", "tokens that attribute --study names"
TALLIES: dict[str, Evidence] = {
    "update norm": "update-norm",
    "ablation estimate": "ablation-estimate",
    "geometric mean": "geometric-mean",
    "update norm by input": "input-update-norm",
    "ablation estimate by input": "input-ablation-estimate",
}
"""Name in the table → evidence."""
LEVELS: tuple[Level, ...] = ("neuron", "head")


def evidence_scores(run: Run, queries: Sequence[Query]) -> dict[str, np.ndarray]:
    """Return the scores of each evidence, [Q, D]; NaN where the record has none of a subject."""
    found = {name: tally_scores(run, queries, own) for name, own in TALLIES.items()}
    return found | row_scores(run, queries) | chosen_scores(run, queries)


def subject_of(query: Query) -> tuple[str, str, int]:
    """Return level, unit and number of a query's subject."""
    return tuple(query.description[key] for key in ("level", "unit", "number"))  # pyright: ignore


def tally_scores(run: Run, queries: Sequence[Query], evidence: Evidence) -> np.ndarray:
    """Return Σ over the datum's tokens of the neuron's mean evidence per position, [Q, D].

    Negative ablation estimates count 0, as in attribution.
    """
    tallies = TallyEvidence.of(run, AttributionConfig(evidence=evidence))
    value_GV, count_V = tallies.whole
    mean_GV = value_GV / np.maximum(count_V, 1)
    group_of = {
        ("neuron", unit, number): group
        for unit, own in tallies.units()
        for group, number in enumerate(tallies.groups.number_G[own].tolist(), own.start)
    }
    token_DT = run.target_NT if tallies.by == "target" else run.token_NT
    found_QD = np.full((len(queries), run.num_datums), np.nan)
    for row, query in enumerate(queries):
        if (group := group_of.get(subject_of(query))) is not None:
            found_QD[row] = mean_GV[group][token_DT].sum(1)
    return found_QD


def row_scores(run: Run, queries: Sequence[Query]) -> dict[str, np.ndarray]:
    """Return number and Σ |shift| of the recorded shifts of each datum in each subject, [Q, D].

    All three evidences from outliers (window, target, input) weigh datums in this way.
    """
    found = {}
    weights: tuple[tuple[str, Weight], ...] = ((ROWS, "count"), (SHIFTS, "shift"))
    for name, weight in weights:
        found[name] = np.zeros((len(queries), run.num_datums))
        for level in LEVELS:
            config = AttributionConfig(level=level, weight=weight, max_datums=run.num_datums)
            table = attribute(run, run_job, config).datums
            own = {key: rows for key, rows in table.groupby(["level", "unit", "group"])}
            for row, query in enumerate(queries):
                rows = own.get(subject_of(query))
                if rows is not None:
                    found[name][row, rows["datum"].to_numpy()] = rows["weight"].to_numpy()
    return found


def chosen_scores(run: Run, queries: Sequence[Query]) -> dict[str, np.ndarray]:
    """Return how many targets of each datum are tokens that attribution names, [Q, D].

    The study names tokens of whole windows, so its tokens count as inputs too.
    """
    found = {name: np.full((len(queries), run.num_datums), np.nan) for name in (CHOSEN, STUDY)}
    window_DM = np.column_stack([run.token_NT, run.target_NT[:, -1]])
    asked = [
        (CHOSEN, AttributionConfig.recommended(tallies=True), run.target_NT),
        (CHOSEN, AttributionConfig.recommended(tallies=False, level="head"), run.target_NT),
        (STUDY, AttributionConfig.study(), window_DM),
    ]
    for name, config, token_DM in asked:
        table = attribute(run, run_job, config)
        level = "head" if config.level == "head" else "neuron"
        for row, query in enumerate(queries):
            if subject_of(query)[0] == level:
                found[name][row] = np.isin(token_DM, tokens_of(table, query)).sum(1)
    return found


def tokens_of(table: Attribution, query: Query) -> np.ndarray:
    """Return the ids of the tokens that attribution names for a query's subject."""
    level, unit, number = subject_of(query)
    rows: pd.DataFrame = table.tokens
    own = (rows["level"] == level) & (rows["unit"] == unit) & (rows["group"] == number)
    return rows["token_id"][own].to_numpy()
