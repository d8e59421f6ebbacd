"""Tables of the components: their values at each checkpoint, and the turns of the path.

Shapes: C checkpoint, N datum, K component.
"""

import numpy as np
import pandas as pd

from analysis.trajectory.components.nulls import (
    PLANE,
    null_angles,
    null_paths,
    other_datums,
    p_value,
)
from analysis.trajectory.components.outputs import Outputs
from analysis.trajectory.components.paths import Path, datum_grams, path_of
from analysis.trajectory.components.turns import turns_of
from analysis.trajectory.metrics.metric import Described
from analysis.trajectory.tables import TURNS
from capture.errors import ConfigError

LEAST_CHECKPOINTS = 8
OUTPUTS = {
    "loss_components": "the losses of held-out tokens",
    "logit_components": "the logits on held-out text",
}


def components_tables(
    steps: list[int], outputs: list[Outputs], components: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, list[Described]]:
    """Return rows of ``TRAJECTORY``, ``TURNS``, and what the metrics mean.

    Checkpoints whose outputs are not finite are left out. Raises ``ConfigError`` if fewer than
    ``LEAST_CHECKPOINTS`` remain.
    """
    pairs = zip(steps, outputs, strict=True)
    kept = [(step, each) for step, each in pairs if each.are_finite]
    require_checkpoints(len(kept))
    step_C = np.array([step for step, _ in kept])
    each_of = {
        "loss_components": [each.loss_NT for _, each in kept],
        "logit_components": [each.logit_NE for _, each in kept],
    }
    rows, turns, described = [], [], []
    for metric, found in each_of.items():
        gram_NCC = datum_grams(found)
        gram_CC = gram_NCC.sum(0)
        path, nulls = path_of(gram_CC, components), null_paths(gram_CC, seed)
        rows.append(component_rows(metric, step_C, path, len(gram_NCC)))
        turns.append(turn_rows(metric, step_C, gram_NCC, nulls, seed))
        described.append(Described(metric, "", meaning_of(metric, path, nulls)))
    return pd.concat(rows, ignore_index=True), pd.concat(turns, ignore_index=True), described


def require_checkpoints(count: int) -> None:
    """Raise ``ConfigError`` for fewer checkpoints than a path needs."""
    if count < LEAST_CHECKPOINTS:
        problem = f"needs {LEAST_CHECKPOINTS} checkpoints with finite outputs, got {count}"
        raise ConfigError("--components", problem, "Raise --checkpoints or give --steps")


def component_rows(metric: str, step_C: np.ndarray, path: Path, datums: int) -> pd.DataFrame:
    frames = [
        pd.DataFrame({"step": step_C, "component": f"PC{number}", "value": value_C})
        for number, value_C in enumerate(path.place_CK.T, 1)
    ]
    nothing = {"standard_error": np.nan, "null": np.nan}
    return pd.concat(frames).assign(metric=metric, n=datums, **nothing)


def turn_rows(
    metric: str, step_C: np.ndarray, gram_NCC: np.ndarray, nulls: list[Path], seed: int
) -> pd.DataFrame:
    """Return the turns of the path, the sharpest first, each with its interval and null."""
    turns = turns_of(path_of(gram_NCC.sum(0), PLANE).place_CK)
    null_D, rows = null_angles(nulls), []
    for turn, between in zip(turns, other_datums(gram_NCC, turns, seed), strict=True):
        low, high = (step_C[int(at)] if np.isfinite(at) else np.nan for at in between)
        ends = step_C[turn.before], step_C[turn.after]
        p = p_value(turn.angle, null_D)
        rows.append((metric, step_C[turn.at], low, high, *ends, turn.angle, null_D.mean(), p))
    return pd.DataFrame(rows, columns=pd.Index(TURNS.names))


def meaning_of(metric: str, path: Path, nulls: list[Path]) -> str:
    """Return what a metric is, with the share of the variance in the plane of the turns."""
    share, null = path.share_K[:PLANE].sum(), np.mean([each.share_K.sum() for each in nulls])
    return (
        f"principal components of {OUTPUTS[metric]} over the checkpoints; the first {PLANE} hold "
        f"{share:.0%} of the variance, those of the same steps in random order {null:.0%}"
    )
