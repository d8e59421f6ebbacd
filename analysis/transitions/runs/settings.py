"""Which runs are samples of the same training? Those whose settings differ in seeds alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.run.run import Run
from analysis.transitions.runs.tables import RUNS
from capture.config.settings import to_values
from capture.errors import ConfigError

MOST_NAMED = 4
INTERVENTION = "intervention."
ASIDE = (
    *("run.seed", "run.uri", "model.seed", "training.order_seed"),
    *("store", "training.device", "corpus.path"),
    *("capture.", "training.evaluation_steps"),
)
"""Settings in which runs of a group may differ: what is recorded leaves training as it is, and the
datums themselves are compared."""


def describe(runs: Sequence[Run]) -> pd.DataFrame:
    """Return ``RUNS``; runs of a group have equal settings, seeds aside."""
    settings = [settings_of(run) for run in runs]
    names = differing(settings)
    rows = [
        {
            "run": run.uri,
            "group": group_name(run, own, names),
            "weight_seed": run.config.weight_seed,
            "order_seed": run.config.order_seed,
            "steps": run.steps_done,
        }
        for run, own in zip(runs, settings, strict=True)
    ]
    return pd.DataFrame(rows, columns=pd.Index(RUNS.names))


def group_name(run: Run, own: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return a run's values of the settings that differ; those of an intervention as a phrase."""
    plain = [name for name in names if not name.startswith(INTERVENTION)]
    values = [f"{name}={own.get(name)}" for name in plain]
    return ", ".join(values + [run.config.intervention.describe()] * (plain != list(names)))


def settings_of(run: Run) -> dict[str, Any]:
    """Return the settings by dotted name, and the checksum of the datums."""
    return flat(to_values(run.config)) | {"datums": checksum(run)}


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of settings that are not equal, without those that are set ``ASIDE``."""
    names = sorted({name for own in settings for name in own if not name.startswith(ASIDE)})
    return [name for name in names if len({repr(own.get(name)) for own in settings}) > 1]


def require_same_settings(runs: Sequence[Run]) -> None:
    """Raise ``ConfigError`` unless the settings of the runs differ in seeds alone.

    Other datums are no difference beside another ``run.seed``, which may choose them.
    """
    first = settings_of(runs[0])
    for run in runs[1:]:
        other = settings_of(run)
        names = differing([first, other])
        if first["run.seed"] != other["run.seed"]:
            names = [name for name in names if name != "datums"]
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            found = f"{runs[0].uri} and {run.uri} are no samples of the same training"
            problem = f"{found}: they differ in {', '.join(names[:MOST_NAMED])}{more}"
            raise ConfigError("RUN", problem, f"Ask: ontogeny compare {runs[0].uri} {run.uri}")


def checksum(run: Run) -> str:
    """Return the first digits of the checksum of the training datums; "" if they are not stored."""
    files = [file for file in run.start.files_of("corpus") if file.key == "corpus/datums.parquet"]
    return files[0].sha256[:8] if files else ""


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted names and values."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found
