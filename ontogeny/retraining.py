"""Train a run again with other weights of its data, and say whether training is smooth."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from capture.config.reading import make_config, read_config
from capture.config.settings import Config, to_values
from ontogeny.answers import opened_run
from ontogeny.run import Run

if TYPE_CHECKING:
    from analysis.influence.queries.parsing import Asked
    from capture.retraining.smoothness import Smoothness

Progress = Callable[[int, int], None]


def retrain(
    run: Run | str | PathLike[str],
    weights: Mapping[int, float],
    *,
    queries: "Sequence[Asked]" = ("loss",),
    steps: range | None = None,
    progress: Progress = lambda done, wanted: None,
) -> pd.DataFrame:
    """Train a run again with other weights of some datums, and compare queries before and after.

    Order, dropout masks, seeds and the divisor of the mean loss stay as they are. The model is kept
    in ``RUN/analysis/retrain/``; an equal request finds it there.

    Args:
        run: A run, or where it is.
        weights: Training datum → factor on its loss: 0 leaves it out, 2 counts it twice.
        queries: As in ``ontogeny.influence``; by default the loss on held-out text.
        steps: Steps in which the weights apply; None for all.
        progress: Called with the number of retrainings done and wanted.

    Returns:
        One row per query: retraining (folder in ``analysis/retrain``), asked, datums (number with
        another weight), query, trained (value as trained), retrained, change.

    Raises:
        CaptureError: A datum or query does not exist, the run cannot be trained again, or training
            diverges.

    Example:
        >>> found = ontogeny.retrain("runs/demo", {3: 0.0, 7: 0.0})
        >>> found["datums"].tolist()
        [2]
    """
    from analysis.influence.counterfactuals import compare_retrained, request_for
    from analysis.influence.queries.parsing import build_queries

    opened = opened_run(run)
    request = request_for(opened, "weights", dict(weights), steps)
    return compare_retrained(opened, build_queries(opened, queries), [request], progress)


def smoothness(
    config: str | Path | Config,
    *overrides: str,
    steps: int = 100,
    directions: int = 3,
    progress: Progress = lambda done, wanted: None,
) -> "Smoothness":
    """Say before training whether counterfactuals about a run can hold; stores nothing.

    Takes the first steps several times in float64, from initial weights that differ by a tiny
    random change, and measures how fast the change grows. Smooth training is necessary for
    counterfactuals, but not sufficient: ``ontogeny.influence`` checks its answers by retraining.

    Args:
        config: A bundled configuration, a YAML file, or a ``Config``.
        overrides: Settings as on the command line, such as ``"training.learning_rate=0.001"``.
        steps: Steps to take after those of the warm-up.
        directions: Number of random changes.
        progress: Called with the number of steps taken and to take.

    Returns:
        An object with ``verdict`` (smooth, chaotic or unclear), ``exponent`` (growth per step, with
        ``low`` and ``high``), ``growth``, ``reach`` (steps until a change has grown by 1000),
        ``clipped`` (share of steps) and ``rounding``.

    Raises:
        CaptureError: A setting is wrong, or training diverges.

    Example:
        >>> ontogeny.smoothness("demo", *small, "training.learning_rate=0.001", steps=8).verdict
        'smooth'
    """
    from capture.retraining.smoothness import SmoothnessConfig, measure_smoothness

    if isinstance(config, Config):
        chosen = make_config(to_values(config), overrides)
    else:
        chosen = read_config(config, overrides)
    how = SmoothnessConfig(steps=steps, directions=directions)
    return measure_smoothness(chosen, how, progress)
