"""Retrainings of a run: made once, kept in the run, and found again by what they are.

``RUN/analysis/retrain/NAME/`` holds the last weights (``model.safetensors``), the weights of the
datums that differ from 1 (``weighting.parquet``) and a marker. NAME follows from the weighting, so
an equal retraining is found again, whichever question asked for it.

Shapes: Q query, D datum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from torch import Tensor

from analysis.influence.judge.designs import Variation
from analysis.influence.queries.query import Query
from analysis.jobs.question import Question
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import encode_frame, marker_key, place_of, put_marker, require_tables
from analysis.run.run import Run
from capture.errors import RunError, ShardError
from capture.format import checkpoint
from capture.format.markers import File, Marker

if TYPE_CHECKING:
    from capture.replay.segments import ReplayableRun

JOB = "retrain"
WEIGHTING = pa.schema([pa.field("datum", pa.int32()), pa.field("weight", pa.float64())])
"""Datums whose weight is not 1, sorted by datum."""
Report = Callable[[int, int], None]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Retraining:
    """Trains a run again with a weighting of its datums; ``Work`` of a ``Sweep``."""

    past: "ReplayableRun"

    def to(self, device: str) -> "Retraining":
        """Ignores the device: the run's configuration chooses it."""
        return self

    def __call__(self, variation: Variation, /) -> tuple[Variation, Weights]:
        return variation, trained_again(self.past, variation)


def trained_again(
    past: "ReplayableRun", variation: Variation, end_step: int | None = None
) -> Weights:
    """Return the weights after a retraining, by default of all steps.

    Raises ``InfluenceError`` if it diverges.
    """
    from capture.retraining.retrain import retrain  # loads the training engine
    from capture.retraining.weighting import Weighting

    return retrain(past, Weighting(variation.weight_D, variation.steps), end_step=end_step)


def require_kept(
    run: Run,
    variations: Sequence[Variation],
    report: Report = lambda done, wanted: None,
    sweep: Sweep = in_turn,
) -> int:
    """Make and keep those of the retrainings that the run does not hold yet; return their number.

    ``report`` is called with the retrainings that are there and wanted. Raises ``ConfigError`` for
    a run of a custom loop, which cannot be trained again, and ``InfluenceError`` if one diverges.
    """
    missing = {one.name: one for one in variations if not is_kept(run, one)}
    known = len({one.name for one in variations}) - len(missing)
    report(known, known + len(missing))
    if missing:
        work = Retraining(run.gradients.replayable)
        for done, (variation, weights) in enumerate(sweep(work, list(missing.values())), 1):
            keep(run, variation, weights)
            report(known + done, known + len(missing))
    return len(missing)


def is_kept(run: Run, variation: Variation) -> bool:
    """Return whether the run holds this retraining, made of as many steps as it has now."""
    job = job_of(variation)
    if not place_of(run, job).exists(marker_key(job)):
        return False
    try:
        require_tables(run, job)
    except RunError:  # of an earlier state of the run: to be made again
        return False
    return True


def keep(run: Run, variation: Variation, weights: Weights) -> None:
    """Store the last weights and the weighting, then the marker."""
    job = job_of(variation)
    changed = np.flatnonzero(variation.weight_D != 1)
    frame = pd.DataFrame({"datum": changed, "weight": variation.weight_D[changed]})
    data, rows = encode_frame(frame, WEIGHTING)
    contents: dict[str, tuple[Any, int | None]] = {
        f"analysis/{job}/weighting.parquet": (data, rows),
        model_key(variation): (checkpoint.encode(weights), None),
    }
    run.tables.delete(marker_key(job))
    for key, (content, _) in contents.items():
        run.tables.put(key, content)
    files = tuple(File.of(key, "analysis", *content) for key, content in contents.items())
    marker = Marker(0, run.steps_done, files, retries=run.tables.take_retries())
    steps = variation.steps and [variation.steps.start, variation.steps.stop]
    question = Question.of(JOB)
    question.options.update(changed=len(changed), steps=steps)
    put_marker(run, marker_key(job), marker, question)


def read_kept(run: Run, variation: Variation) -> Weights:
    """Return the last weights of a retraining that is kept; raise ``ShardError`` if damaged."""
    job, key = job_of(variation), model_key(variation)
    store, marker = place_of(run, job), require_tables(run, job)
    where = f"{store.uri}/{key}"
    file = next((file for file in marker.files if file.key == key), None)
    if file is None or not store.exists(key):
        raise ShardError(where, "is missing", "Delete its folder; it is made again")
    return checkpoint.decode(checkpoint.read_listed(store, file), where)


def query_values(
    run: Run, queries: Sequence[Query], variations: Sequence[Variation]
) -> dict[str, np.ndarray]:
    """Return the values of the queries after each retraining, by its name, each [Q].

    The retrainings must be kept. Equal ones are evaluated once.
    """
    unique = {variation.name: variation for variation in variations}
    return {name: values(queries, read_kept(run, one)) for name, one in unique.items()}


def values(queries: Sequence[Query], weights: Weights) -> np.ndarray:
    """Return the value of each query at these weights, in float64 arithmetic, [Q]."""
    exact = {
        name: own.double() if own.is_floating_point() else own for name, own in weights.items()
    }
    return np.array([query.value(exact) for query in queries])


def job_of(variation: Variation) -> str:
    return f"{JOB}/{variation.name}"


def model_key(variation: Variation) -> str:
    return f"analysis/{job_of(variation)}/model.safetensors"
