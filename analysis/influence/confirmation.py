"""Confirm unrolled influence: leave out random datums, train again, and compare what changes.

A derivative is a fact about infinitely small changes. Whether it holds for the removal of datums is
another question, and neither the growth of the adjoint nor that of random changes of the weights
answers it: a removal moves the weights along gradients, which are the directions in which training
is least stable, and it moves them so far that units with ReLU switch. So the answer itself is put
to the test. The removals are the first subsets of ``ontogeny lds``, and both use the same stored
retrainings.

Shapes: Q query, D datum, M retraining.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.influence.config import InfluenceConfig
from analysis.influence.judge.designs import Variation, random_subsets
from analysis.influence.judge.retrainings import (
    Weights,
    is_kept,
    read_kept,
    require_kept,
    values,
)
from analysis.influence.queries.query import Query
from analysis.influence.tables import Influence
from analysis.run.run import Run
from capture.errors import InfluenceError

KEEP = 0.9
"""Share of the datums that stay."""
SEED = 0
Report = Callable[[], None]


def confirmed(
    run: Run,
    queries: Sequence[Query],
    found: Influence,
    influence_QD: np.ndarray,
    config: InfluenceConfig,
    report: Report = lambda: None,
    *,
    keep: bool,
) -> Influence:
    """Return the tables with ``checks``, and with the departure of each query.

    ``keep``: keep the retrainings in the run, as ``ontogeny lds`` does. ``report`` is called after
    each of ``config.checks`` retrainings.
    """
    end_step = run.steps_done if config.end_step is None else config.end_step
    whole = (config.first_step, end_step) == (0, run.steps_done)
    steps = None if whole else range(config.first_step, end_step)
    subsets = random_subsets(run.num_datums, keep=KEEP, count=config.checks, seed=SEED)
    variations = [Variation(subset.weight_D, steps) for subset in subsets]
    trained_Q = values(queries, dict(run.network(end_step).named_parameters()))
    changes = []
    for variation in variations:
        changes.append(change(run, queries, variation, end_step, trained_Q, keep))
        report()
    change_QM = np.stack(changes, axis=1)
    weight_MD = np.stack([variation.weight_D for variation in variations])
    predicted_QM = influence_QD @ (weight_MD - 1).T
    names, left_out_M = [one.name for one in variations], (weight_MD == 0).sum(1)
    frames = [
        pd.DataFrame(
            {
                "query": query.name,
                "retraining": names,
                "left_out": left_out_M,
                "predicted": predicted_QM[q],
                "change": change_QM[q],
            }
        )
        for q, query in enumerate(queries)
    ]
    pairs = zip(predicted_QM, change_QM, strict=True)
    departures = [departure(*pair) for pair in pairs]
    queries_table = found.queries.assign(departure=departures)
    return replace(found, checks=pd.concat(frames, ignore_index=True), queries=queries_table)


def change(
    run: Run,
    queries: Sequence[Query],
    variation: Variation,
    end_step: int,
    trained_Q: np.ndarray,
    keep: bool,
) -> np.ndarray:
    """Return how much each query changes by a retraining, [Q]; NaN if it diverges."""
    try:
        return values(queries, weights_after(run, variation, end_step, keep)) - trained_Q
    except InfluenceError:
        return np.full(len(queries), np.nan)


def weights_after(run: Run, variation: Variation, end_step: int, keep: bool) -> Weights:
    """Return the weights after a retraining up to a step; raise ``InfluenceError`` if it
    diverges."""
    if end_step == run.steps_done:
        if keep:
            require_kept(run, [variation])
        if is_kept(run, variation):
            return read_kept(run, variation)
    from capture.retraining.retrain import retrain  # loads the training engine
    from capture.retraining.weighting import Weighting

    weighting = Weighting(variation.weight_D, variation.steps)
    return retrain(run.gradients.replayable, weighting, end_step=end_step)


def departure(predicted_M: np.ndarray, change_M: np.ndarray) -> float:
    """Return ‖change − predicted‖ / ‖change‖: 0 is exact, 1 what predicting no change gives.

    Infinite if a retraining diverged, or if nothing changed though a change was predicted.

    >>> departure(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    0.0
    >>> departure(np.array([0.0, 0.0]), np.array([1.0, 2.0]))
    1.0
    """
    if not np.isfinite(change_M).all():
        return float("inf")
    off, size = np.linalg.norm(change_M - predicted_M), np.linalg.norm(change_M)
    if not off:
        return 0.0
    return float(off / size) if size else float("inf")
