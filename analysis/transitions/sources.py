"""The curves of a run: its steps, its evaluations, and tables of ``ontogeny trajectory``."""

from collections.abc import Sequence

import pandas as pd

from analysis.jobs.tables import marker_key, read_table, table_set
from analysis.run.run import Run
from analysis.trajectory.tables import JOB, TRAJECTORY
from analysis.transitions.curves import COLUMNS, Curve
from capture.errors import ConfigError

TRAINING_LOSS, GRADIENT_NORM = "training loss", "gradient norm"
LOSSES = ("loss", "validation loss", "test loss", TRAINING_LOSS)
"""The loss that curves may coincide with: the first that a run has and that changes."""
TARGETS = ("accuracy", "validation accuracy", "test accuracy", *LOSSES)
"""The target that curves may foretell: the first that a run has and that changes."""

OF_UNITS = tuple(
    f"{what}_{how}"
    for what in ("weight", "update", "gradient")
    for how in ("norm", "size", "mean", "variance", "cosine")
)
"""Metrics with a curve for every parameter tensor. By default only those of the whole model are
tested: hundreds of curves of units would hide the others behind the correction for their number."""


def frame_of(run: Run, trajectory: str) -> pd.DataFrame:
    """Return all curves of a run with ``COLUMNS``; those of ``trajectory`` come first.

    Raises ``RunError`` if a name is given and the run has no such tables.
    """
    run.require_shards("steps")
    parts = [measured(run, trajectory), evaluated(run), stepped(run)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def measured(run: Run, name: str) -> pd.DataFrame:
    """Return the tables of ``ontogeny trajectory``; empty if there are none without a name."""
    job = table_set(JOB, name)
    if not name and not any(store.exists(marker_key(job)) for store in (run.tables, run.store)):
        return pd.DataFrame(columns=pd.Index(COLUMNS))
    return read_table(run, job, "trajectory", TRAJECTORY)[COLUMNS]


def evaluated(run: Run) -> pd.DataFrame:
    """Return loss on held-out text, and accuracy on held-out tasks, as recorded in training.

    The standard error of an accuracy is binomial; that of a loss was not recorded.
    """
    rows = run.evaluations()
    parts = []
    for column in ("accuracy", "loss"):
        if column in rows:
            value, count = rows[column], rows["tokens"]
            error = (value * (1 - value) / count) ** 0.5 if column == "accuracy" else float("nan")
            metric = rows["split"].astype(str) + f" {column}"
            own = {"metric": metric, "component": "", "value": value, "n": count}
            parts.append(rows[["step"]].assign(**own, standard_error=error))
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def stepped(run: Run) -> pd.DataFrame:
    """Return loss and gradient norm of each batch; step s is of the model after s updates."""
    rows = run.steps()
    parts = [
        rows[["step"]].assign(
            metric=metric, component="", value=rows[column], n=1, standard_error=float("nan")
        )
        for metric, column in ((TRAINING_LOSS, "loss"), (GRADIENT_NORM, "gradient_norm"))
    ]
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def choose_metrics(frame: pd.DataFrame, wanted: Sequence[str], where: str) -> pd.DataFrame:
    """Return the rows of the wanted metrics (all if none is named); raise ``ConfigError`` for one
    that the run has not."""
    known = frame["metric"].unique().tolist()
    for metric in wanted:
        if metric not in known:
            remedy = f"It has: {', '.join(known)}"
            raise ConfigError("transitions.metrics", f"{where} has no {metric!r}", remedy)
    return frame[frame["metric"].isin(list(wanted))] if wanted else frame


def without_units(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Return a table of curves without those of single units, and the number of these.

    A table that has no others is returned as it is.
    """
    of_unit = frame["metric"].isin(OF_UNITS) & (frame["component"] != "")
    if of_unit.all():
        return frame, 0
    left_out = frame.loc[of_unit, ["metric", "component"]].drop_duplicates()
    return frame[~of_unit], len(left_out)


def first_of(names: Sequence[str], curves: Sequence[Curve]) -> Curve | None:
    """Return the first named curve that changes."""
    found = {curve.name: curve for curve in curves if curve.changes}
    return next((found[name] for name in names if name in found), None)
