"""What a neuron would be without some data: read from the tables of ``influence`` and ``lds``.

Unrolled influence on a neuron's effect predicts which datums it depends on. ``lds --top`` trains
without the datums so named and measures the effect that is left, beside random datums. Both are
read from every set of tables in the run; nothing is computed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.jobs.tables import read_table, table_set, table_sets
from analysis.measures.bootstrap import mean_interval
from analysis.run.run import Run
from capture.errors import ColumnError, RunError

Neuron = tuple[str, int]
METHOD, NULL = "unrolled", "random"
QUERIES = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("method", pa.string()),
        pa.field("description", pa.string()),
        pa.field("end_step", pa.int32()),
        pa.field("reliable_from", pa.int32()),
        pa.field("departure", pa.float64()),
    ]
)
DATUMS = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("datum", pa.int32()),
        pa.field("influence", pa.float64()),
    ]
)
JUDGEMENTS = pa.schema(
    [
        pa.field("test", pa.string()),
        pa.field("setting", pa.float64()),
        pa.field("method", pa.string()),
        pa.field("query", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("retrainings", pa.int32()),
    ]
)


@dataclass(frozen=True)
class EffectLeft:
    """A neuron's effect after training without the datums that unrolled influence named."""

    share: float
    """Share of the training datums that was left out."""
    left: float
    """Effect after training without them / effect as trained."""
    random: float
    """Effect left after training without random datums, mean over sets; NaN without any."""
    random_sets: int
    mean: float
    """Mean of ``left`` over all queries that were judged together."""
    low: float
    """95 % bootstrap interval of the mean, over queries; NaN for one query."""
    high: float
    queries: int


@dataclass(frozen=True, eq=False)
class NeuronInfluence:
    """Unrolled influence of the training datums on a neuron's effect on a token."""

    name: str
    """Name of the set of tables; "" for the unnamed one."""
    query: str
    datums: pd.DataFrame
    """Columns datum and influence (nats), those that raised the effect most first."""
    end_step: int
    reliable_from: int
    """Contributions of earlier steps are left out: training amplified small changes too much."""
    departure: float
    """‖change − predicted‖ / ‖change‖ when training was repeated without random datums; from 1 on
    the prediction is refuted. NaN if that was not tried."""
    left: EffectLeft | None
    """None if no retraining without them is in the run."""


def neuron_influences(run: Run) -> dict[Neuron, list[NeuronInfluence]]:
    """Return what the run's tables say, by neuron; neurons without tables are absent.

    Tables of an earlier state of the run, or of an earlier version, are left out. Raises
    ``ShardError`` for damaged ones.
    """
    left = effects_left(run)
    found: dict[Neuron, list[NeuronInfluence]] = {}
    for name in table_sets(run, "influence"):
        job = table_set("influence", name)
        try:
            queries = read_table(run, job, "queries", QUERIES, {"method": [METHOD]})
        except (RunError, ColumnError):
            continue
        asked_by_query = {
            str(row.query): asked
            for row in queries.itertuples(index=False)
            if is_neuron(asked := json.loads(str(row.description)))
        }
        if not asked_by_query:
            continue
        datums = read_table(run, job, "datums", DATUMS, {"query": list(asked_by_query)})
        order = ["influence", "datum"]
        ranked = dict(list(datums.sort_values(order, ascending=[False, True]).groupby("query")))
        for row in queries.itertuples(index=False):
            asked = asked_by_query.get(str(row.query))
            if asked is None:
                continue
            own = NeuronInfluence(
                name,
                str(row.query),
                ranked[str(row.query)][["datum", "influence"]].reset_index(drop=True),
                int(row.end_step),  # pyright: ignore[reportArgumentType]
                int(row.reliable_from),  # pyright: ignore[reportArgumentType]
                float(row.departure),  # pyright: ignore[reportArgumentType]
                left.get(str(row.query)),
            )
            found.setdefault((asked["unit"], int(asked["number"])), []).append(own)
    return found


def is_neuron(asked: dict[str, Any]) -> bool:
    """Return whether a query, as it is described in a table, is about a neuron's effect."""
    return (asked.get("kind"), asked.get("level")) == ("effect", "neuron")


def effects_left(run: Run) -> dict[str, EffectLeft]:
    """Return the effect left of each query that ``lds --top`` judged, the last set's if several."""
    found: dict[str, EffectLeft] = {}
    for name in table_sets(run, "lds"):
        wanted = {"test": ["removal"], "method": [METHOD, NULL]}
        try:
            table = read_table(run, table_set("lds", name), "judgements", JUDGEMENTS, wanted)
        except (RunError, ColumnError):
            continue
        for share, rows in table.groupby("setting", sort=False):
            found |= dict(effects_of(float(share), rows))  # pyright: ignore[reportArgumentType]
    return found


def effects_of(share: float, rows: pd.DataFrame) -> Iterator[tuple[str, EffectLeft]]:
    """Yield each query of ``JUDGEMENTS`` with one share, and what is left of it."""
    is_null = rows["method"] == NULL
    nulls = {row["query"]: row for row in rows[is_null].to_dict("records")}
    named = rows[~is_null & np.isfinite(rows["value"])]
    low, high = mean_interval(named["value"].to_numpy())
    whole = {"mean": float(named["value"].mean()), "low": low, "high": high, "queries": len(named)}
    for row in named.to_dict("records"):
        null = nulls.get(row["query"], {"value": np.nan, "retrainings": 0})
        control = float(null["value"]), int(null["retrainings"])
        yield row["query"], EffectLeft(share, float(row["value"]), *control, **whole)
