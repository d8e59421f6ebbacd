"""Train a run again as a user asks, and compare queries before and after.

A request names datums to leave out or to count twice, or gives a file of weights. Equal requests
find the same stored retraining, whichever command made it.

Shapes: D training datum, Q query.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.influence.judge.designs import Variation
from analysis.influence.judge.retrainings import Report, query_values, require_kept, values
from analysis.influence.queries.query import Query
from analysis.jobs.sweep import Sweep, in_turn
from analysis.run.run import Run
from capture.errors import ConfigError

COLUMNS = ("retraining", "asked", "datums", "query", "trained", "retrained", "change")


@dataclass(frozen=True, eq=False)
class Request:
    """One retraining, as it was asked for."""

    asked: str
    """For people, such as "without 3,5-9"."""
    variation: Variation

    @property
    def num_changed(self) -> int:
        """Number of datums whose weight is not 1."""
        return int((self.variation.weight_D != 1).sum())


def request_for(run: Run, asked: str, changed: dict[int, float], steps: range | None) -> Request:
    """Return the request for other weights of some datums.

    Raises ``ConfigError``, which begins with ``asked``, for a datum that the run does not have, a
    weight that is not finite, and a request that changes nothing.
    """
    weight_D = np.ones(run.num_datums)
    for datum, weight in changed.items():
        if not 0 <= datum < run.num_datums:
            problem = f"the run has no training datum {datum}; it has {run.num_datums:,}"
            raise ConfigError(asked, problem, f"Choose from 0 to {run.num_datums - 1}")
        if not np.isfinite(weight):
            raise ConfigError(asked, f"datum {datum} has weight {weight}, must be a finite number")
        weight_D[datum] = weight
    if (weight_D == 1).all():
        raise ConfigError(asked, "changes no datum", "Name at least one datum")
    return Request(asked, Variation(weight_D, steps))


def requests_of_file(run: Run, path: str, steps: range | None) -> list[Request]:
    """Read weights from a CSV or Parquet file with columns datum and weight.

    With a column ``retraining``, each of its values is one retraining. Raises ``ConfigError`` for a
    file that cannot be read so.
    """
    frame = read_frame(path)
    for column in ("datum", "weight"):
        if column not in frame:
            problem = f"lacks a column {column}; it has {', '.join(map(str, frame.columns))}"
            raise ConfigError(path, problem, "Wanted: datum, weight and perhaps retraining")
        if not pd.api.types.is_numeric_dtype(frame[column]) or frame[column].isna().any():
            raise ConfigError(path, f"has entries in column {column} that are no numbers")
    if not (frame["datum"] % 1 == 0).all():
        raise ConfigError(path, "has datums that are no whole numbers")
    parts = frame.groupby("retraining", sort=False) if "retraining" in frame else [("", frame)]
    found = []
    for name, part in parts:
        asked = f"{path} {name}".strip()
        repeated = part["datum"][part["datum"].duplicated()]
        if len(repeated):
            raise ConfigError(asked, f"names datum {int(repeated.iloc[0])} twice")
        changed = dict(zip(part["datum"].astype(int), part["weight"].astype(float), strict=True))
        found.append(request_for(run, asked, changed, steps))
    return found


def read_frame(path: str) -> pd.DataFrame:
    place = Path(path).expanduser()
    try:
        return pd.read_parquet(place) if place.suffix == ".parquet" else pd.read_csv(place)
    except OSError as error:
        raise ConfigError(path, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, UnicodeDecodeError) as error:
        problem = f"is not a table: {str(error).splitlines()[0]}"
        raise ConfigError(path, problem, "Give a CSV or Parquet file") from error


def compare_retrained(
    run: Run,
    queries: Sequence[Query],
    requests: Iterable[Request],
    report: Report = lambda done, wanted: None,
    sweep: Sweep = in_turn,
) -> pd.DataFrame:
    """Make the retrainings that the run does not hold yet, and evaluate queries after each.

    Returns one row per request and query: ``retraining`` (its folder in analysis/retrain), asked,
    datums (number with another weight), query, trained, retrained, and change, retrained − trained.
    Raises ``ConfigError`` for a run that cannot be trained again.
    """
    requests = list(requests)
    variations = [request.variation for request in requests]
    require_kept(run, variations, report, sweep)
    trained_Q = values(queries, dict(run.network().named_parameters()))
    after = query_values(run, queries, variations)
    rows = [
        (
            *(request.variation.name, request.asked, request.num_changed, query.name),
            *(trained, retrained, retrained - trained),
        )
        for request in requests
        for query, trained, retrained in zip(
            queries, trained_Q, after[request.variation.name], strict=True
        )
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))
