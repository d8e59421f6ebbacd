"""Read the answers of ``ontogeny influence`` that a run holds."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from analysis.jobs.influence_wording import Row
from analysis.jobs.tables import read_table, table_set, table_sets
from analysis.run.run import Run
from capture.errors import ColumnError, RunError

JOB = "influence"
MOST_QUERIES = 20
"""Queries of a set of tables that the report shows."""
DATUMS_SHOWN = 5
"""Datums on each side of a query."""
NUMBERS = (
    *("absolute", "datums", "before", "after", "decay", "inherited", "incompleteness"),
    *("quadrature", "growth", "largest_growth", "exponent", "exponent_low", "exponent_high"),
    "departure",
)
QUERIES = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("method", pa.string()),
        pa.field("better", pa.string()),
        pa.field("first_step", pa.int32()),
        pa.field("end_step", pa.int32()),
        pa.field("from_factors", pa.bool_()),
        pa.field("reliable_from", pa.int32()),
        pa.field("computed_from", pa.int32()),
        *(pa.field(name, pa.float64()) for name in NUMBERS),
    ]
)
DATUMS = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("datum", pa.int32()),
        pa.field("influence", pa.float64()),
        pa.field("times", pa.int32()),
    ]
)
POSITIONS = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("datum", pa.int32()),
        pa.field("position", pa.int32()),
        pa.field("influence", pa.float64()),
    ]
)
CHECKS = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("left_out", pa.int32()),
        pa.field("first_step", pa.int32()),
        pa.field("predicted", pa.float64()),
        pa.field("change", pa.float64()),
    ]
)
NEWER = {"queries": ("from_factors", "computed_from"), "checks": ("first_step",)}
"""Table → columns that were added later, and are missing values in tables from before."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a run says of one query."""

    query: Row
    """A row of ``QUERIES``."""
    raised: pd.DataFrame
    """The datums with the largest positive influence, strongest first."""
    lowered: pd.DataFrame
    positions: pd.DataFrame
    """Influence by position, of these datums; empty for methods that do not tell."""
    checks: pd.DataFrame


@dataclass(frozen=True, eq=False)
class AnswerSet:
    """The answers of one set of tables."""

    name: str
    """Empty for the set without a name."""
    answers: list[Answer]
    more: int
    """Queries of the set that are left out."""


def read_answers(run: Run) -> Iterator[AnswerSet]:
    """Yield the sets of answers in the run, by name.

    Tables of an earlier state of the run are left out, and those of an earlier version that lack
    more columns than ``NEWER``. Raises ``ShardError`` for damaged ones.
    """
    for name in table_sets(run, JOB):
        try:
            found = read_set(run, name)
        except (RunError, ColumnError):
            continue
        yield found


def read_set(run: Run, name: str) -> AnswerSet:
    """Return the answers of one set of tables; raises what ``read_table`` raises."""
    job = table_set(JOB, name)
    queries = read_table(run, job, "queries", QUERIES, newer=NEWER["queries"])
    shown = queries.head(MOST_QUERIES).to_dict("records")
    wanted = {"query": [str(row["query"]) for row in shown]}
    datums, positions, checks = (
        by_query(read_table(run, job, table, schema, wanted, NEWER.get(table, ())))
        for table, schema in (("datums", DATUMS), ("positions", POSITIONS), ("checks", CHECKS))
    )
    answers = [
        Answer(
            row,
            *strongest(datums[row["query"]]),
            positions.get(row["query"], empty(POSITIONS)),
            checks.get(row["query"], empty(CHECKS)),
        )
        for row in shown
    ]
    return AnswerSet(name, answers, len(queries) - len(shown))


def by_query(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(query): part for query, part in table.groupby("query", sort=False)}


def empty(schema: pa.Schema) -> pd.DataFrame:
    return schema.empty_table().to_pandas()


def strongest(datums: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the datums that raised a query most, and those that lowered it most."""
    order = datums.sort_values("influence", kind="stable")
    raised = order[order["influence"] > 0][::-1].head(DATUMS_SHOWN)
    return raised, order[order["influence"] < 0].head(DATUMS_SHOWN)
