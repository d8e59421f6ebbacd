"""Tables of ``ontogeny directions``.

Shapes: Q query, D training datum, K direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.influence.directions.along import Along, DirectionsConfig
from analysis.influence.queries.query import Query
from analysis.influence.tables import CHECKS
from analysis.jobs.question import Question
from analysis.jobs.tables import concat_frames, table_set, write_tables
from analysis.run.run import Run

DIRECTIONS = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("direction", pa.int32()),  # neuron, component, atom or row of the file
        pa.field("influence", pa.float64()),  # Σ over datums, in units of the query
        pa.field("absolute", pa.float64()),  # Σ over datums of |influence|
        pa.field("null_mean", pa.float64()),  # of ``absolute`` along random directions
        pa.field("null_high", pa.float64()),  # 95 % of the random directions stay below
        pa.field("p", pa.float64()),  # share of random directions with as much, this one included
        pa.field("reliable_from", pa.int32()),  # earlier steps are beyond the horizon, and left out
    ]
)
DATUMS = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("direction", pa.int32()),
        pa.field("rank", pa.int32()),  # from 0, by |influence|
        pa.field("datum", pa.int32()),
        pa.field("influence", pa.float64()),
    ]
)
SCHEMAS = {"directions": DIRECTIONS, "datums": DATUMS, "checks": CHECKS}


@dataclass(frozen=True, eq=False)
class Directions:
    """Influence on queries along directions of a weight."""

    directions: pd.DataFrame
    """One row per query and direction, that with the largest ``absolute`` first."""
    datums: pd.DataFrame
    """The datums with the largest absolute influence along each direction."""
    checks: pd.DataFrame
    """What retraining without random datums says about unrolled influence; else empty."""


def tabulate(found: Along, queries: Sequence[Query], config: DirectionsConfig) -> Directions:
    """Return the tables of influences along directions."""
    rows, datums = [], []
    for q, query in enumerate(queries):
        own_DK, null_K = found.influence_QDK[q], np.abs(found.null_QDK[q]).sum(0)
        absolute_K = np.abs(own_DK).sum(0)
        beyond_K = (null_K[:, None] >= absolute_K).sum(0)
        rows.append(
            pd.DataFrame(
                {
                    "query": query.name,
                    "direction": np.arange(own_DK.shape[1]),
                    "influence": own_DK.sum(0),
                    "absolute": absolute_K,
                    "null_mean": null_K.mean(),
                    "null_high": np.quantile(null_K, 0.95),
                    "p": (beyond_K + 1) / (len(null_K) + 1),
                    "reliable_from": found.first_step,
                }
            ).sort_values("absolute", ascending=False, kind="stable")
        )
        order_MK = np.argsort(-np.abs(own_DK), axis=0, kind="stable")[: config.datums]
        for direction, order_M in enumerate(order_MK.T):
            part = {"query": query.name, "direction": direction, "rank": np.arange(len(order_M))}
            part |= {"datum": order_M, "influence": own_DK[order_M, direction]}
            datums.append(pd.DataFrame(part))
    frames = ((rows, DIRECTIONS), (datums, DATUMS), ([found.checks], CHECKS))
    return Directions(*(concat_frames(*own) for own in frames))


def directions_question(queries: Sequence[Query], config: DirectionsConfig) -> Question:
    """Return what the tables answer."""
    question = Question.of("directions", config)
    question.options["queries"] = [dict(query.description) for query in queries]
    return question


def write_directions(run: Run, found: Directions, question: Question, name: str = "") -> None:
    """Write the tables to ``RUN/analysis/directions/``, or to its folder ``name``."""
    write_tables(run, table_set("directions", name), vars(found), SCHEMAS, question)
