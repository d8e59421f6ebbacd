"""Tables of ``ontogeny influence``."""

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from analysis.jobs.question import Question
from analysis.jobs.tables import table_set, write_tables
from analysis.run.run import Run

JOB = "influence"
NAME, DATUM, INFLUENCE = (
    pa.field("query", pa.string()),
    pa.field("datum", pa.int32()),
    pa.field("influence", pa.float64()),
)
QUERIES = pa.schema(
    [
        NAME,
        pa.field("number", pa.int32()),
        pa.field("method", pa.string()),
        pa.field("preview", pa.bool_()),  # computed from a part of the record
        pa.field("better", pa.string()),  # higher, lower, or empty
        pa.field("description", pa.string()),  # JSON from which the query can be built again
        pa.field("first_step", pa.int32()),
        pa.field("end_step", pa.int32()),
        pa.field("from_factors", pa.bool_()),  # read from stored factors; else steps were replayed
        pa.field("before", pa.float64()),  # value before the first step; path
        pa.field("after", pa.float64()),  # value after the last step
        pa.field("absolute", pa.float64()),  # Σ over steps and datums of |influence|
        pa.field("datums", pa.float64()),  # Σ over datums of influence, reliable or not
        pa.field("decay", pa.float64()),  # influence of weight decay; path
        pa.field("inherited", pa.float64()),  # of momentum from before the first step; path
        pa.field("incompleteness", pa.float64()),  # |Σ of all parts − change| / Σ |parts|; path
        pa.field("quadrature", pa.float64()),  # Σ |rest of the quadrature| / Σ |parts|; path
        pa.field("growth", pa.float64()),  # of the adjoint, to the first step; unrolled
        pa.field("largest_growth", pa.float64()),
        pa.field("exponent", pa.float64()),  # mean growth of log ‖adjoint‖ per step back
        pa.field("exponent_low", pa.float64()),  # 95 % interval
        pa.field("exponent_high", pa.float64()),
        pa.field("reliable_from", pa.int32()),  # contributions of earlier steps are unreliable
        pa.field("computed_from", pa.int32()),  # those of earlier steps were not computed; unrolled
        pa.field("departure", pa.float64()),  # ‖change − predicted‖ / ‖change‖ of the checks
    ]
)
DATUMS = pa.schema(
    [
        NAME,
        DATUM,
        INFLUENCE,  # of the steps within the horizon
        pa.field("unreliable", pa.float64()),  # of earlier steps that were computed
        pa.field("times", pa.int32()),  # in how many steps of those asked for
    ]
)
POSITIONS = pa.schema(
    [NAME, DATUM, pa.field("position", pa.int32()), pa.field("token", pa.string()), INFLUENCE]
)
"""Influence by the position of the target whose loss it came from; of the strongest datums. Empty
if stored factors were read."""
WINDOWS = pa.schema(
    [
        NAME,
        pa.field("window", pa.int32()),
        pa.field("first_step", pa.int32()),
        pa.field("end_step", pa.int32()),
        pa.field("raised", pa.float64()),  # Σ of the positive influences of (datum, step)
        pa.field("lowered", pa.float64()),  # both are NaN if steps of the window are not computed
        pa.field("decay", pa.float64()),
        pa.field("reliable", pa.bool_()),  # whether all of its steps are within the horizon
    ]
)
UNITS = pa.schema(
    [
        NAME,
        pa.field("unit", pa.string()),
        INFLUENCE,
        pa.field("absolute", pa.float64()),  # Σ over datums of |influence|
    ]
)
STEPS = pa.schema(
    [
        NAME,
        pa.field("step", pa.int32()),
        pa.field("raised", pa.float64()),
        pa.field("lowered", pa.float64()),
        pa.field("decay", pa.float64()),
        pa.field("growth", pa.float64()),
        pa.field("reliable", pa.bool_()),
    ]
)
CHECKS = pa.schema(
    [
        NAME,
        pa.field("retraining", pa.string()),  # its folder in analysis/retrain
        pa.field("left_out", pa.int32()),  # number of datums
        pa.field("first_step", pa.int32()),  # they are left out from this step on
        pa.field("predicted", pa.float64()),  # −Σ of their influences
        pa.field("change", pa.float64()),  # of the query; NaN if training diverged
    ]
)
"""What random removals do to each query, predicted and retrained; unrolled."""
SCHEMAS = {
    "queries": QUERIES,
    "datums": DATUMS,
    "positions": POSITIONS,
    "windows": WINDOWS,
    "units": UNITS,
    "steps": STEPS,
    "checks": CHECKS,
}


@dataclass(frozen=True, eq=False)
class Influence:
    """The influence of training datums on queries; a DataFrame for each table."""

    queries: pd.DataFrame
    datums: pd.DataFrame
    positions: pd.DataFrame
    windows: pd.DataFrame
    units: pd.DataFrame
    steps: pd.DataFrame
    checks: pd.DataFrame

    def strongest(self, query: str, most: int, *, raised: bool) -> pd.DataFrame:
        """Return the datums that raised (or lowered) a query most, strongest first."""
        own = self.datums[self.datums["query"] == query]
        own = own[own["influence"] > 0] if raised else own[own["influence"] < 0]
        return own.sort_values("influence", ascending=not raised, kind="stable").head(most)


def write_influence(
    run: Run, found: Influence, question: Question | None = None, name: str = ""
) -> None:
    """Write the tables to ``analysis/influence/``, or ``analysis/influence/NAME/``."""
    write_tables(run, table_set(JOB, name), vars(found), SCHEMAS, question)
