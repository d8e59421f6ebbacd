"""Confirm unrolled influence: leave out random datums, train again, and compare what changes.

A derivative is a fact about infinitely small changes. Whether it holds for the removal of datums is
another question, and neither the growth of the adjoint nor that of random changes of the weights
answers it: a removal moves the weights along gradients, which are the directions in which training
is least stable, and it moves them so far that units with ReLU switch. So the answer itself is put
to the test. The removals are the first subsets of ``ontogeny lds``, and both use the same stored
retrainings.

Shapes: Q query, D datum, M retraining.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.influence.judge.designs import Variation, random_subsets
from analysis.influence.judge.retrainings import (
    Weights,
    is_kept,
    read_kept,
    trained_again,
    values,
)
from analysis.influence.judge.retrainings import keep as store_retraining
from analysis.influence.queries.query import Query
from analysis.influence.tables import Influence
from analysis.jobs.sweep import Sweep, in_turn
from analysis.run.run import Run
from capture.errors import InfluenceError

if TYPE_CHECKING:
    from capture.replay.segments import ReplayableRun

KEEP = 0.9
"""Share of the datums that stay."""
SEED = 0
Report = Callable[[], None]


def confirmed(
    run: Run,
    queries: Sequence[Query],
    found: Influence,
    influence_QD: np.ndarray,
    steps: range,
    count: int,
    report: Report = lambda: None,
    *,
    keep: bool,
    sweep: Sweep = in_turn,
) -> Influence:
    """Return the tables with ``checks``, and with the departure of each query.

    ``influence_QD``: of the given steps. ``keep``: keep the retrainings in the run, as ``ontogeny
    lds`` does. ``report`` is called after each of ``count`` retrainings. ``sweep`` trains again.
    """
    checks = checked(run, queries, influence_QD, count, steps, report, keep=keep, sweep=sweep)
    departures = [departure_of(checks[checks["query"] == query.name]) for query in queries]
    return replace(found, checks=checks, queries=found.queries.assign(departure=departures))


def checked(
    run: Run,
    queries: Sequence[Query],
    influence_QD: np.ndarray,
    count: int,
    steps: range,
    report: Report = lambda: None,
    *,
    keep: bool = True,
    sweep: Sweep = in_turn,
) -> pd.DataFrame:
    """Return what ``count`` random removals do to each query, predicted and retrained; ``CHECKS``.

    ``steps``: those in which the datums are left out, and whose influences are given.
    """
    whole = steps == range(run.steps_done)
    subsets = random_subsets(run.num_datums, keep=KEEP, count=count, seed=SEED)
    variations = [Variation(one.weight_D, None if whole else steps) for one in subsets]
    trained_Q = values(queries, dict(run.network(steps.stop).named_parameters()))
    changes = []
    for weights in retrained(run, variations, steps.stop, sweep, keep=keep):
        nothing_Q = np.full(len(queries), np.nan)
        changes.append(nothing_Q if weights is None else values(queries, weights) - trained_Q)
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
                "first_step": steps.start,
                "predicted": predicted_QM[q],
                "change": change_QM[q],
            }
        )
        for q, query in enumerate(queries)
    ]
    return pd.concat(frames, ignore_index=True)


def departure_of(checks: pd.DataFrame) -> float:
    """Return the departure that the checks of one query show."""
    return departure(checks["predicted"].to_numpy(), checks["change"].to_numpy())


def retrained(
    run: Run, variations: Sequence[Variation], end_step: int, sweep: Sweep, *, keep: bool
) -> Iterator[Weights | None]:
    """Yield the weights after each retraining up to a step, or None if it diverged.

    Those of the whole run are taken from the run if it holds them, and with ``keep`` stored there.
    """
    whole = end_step == run.steps_done
    known = [whole and is_kept(run, variation) for variation in variations]
    missing = [one for one, is_known in zip(variations, known, strict=True) if not is_known]
    made = iter(())
    if missing:
        made = iter(sweep(Attempt(run.gradients.replayable, end_step), missing))
    for variation, is_known in zip(variations, known, strict=True):
        if is_known:
            yield read_kept(run, variation)
            continue
        weights = next(made)
        if whole and keep and weights is not None:
            store_retraining(run, variation, weights)
        yield weights


@dataclass(frozen=True)
class Attempt:
    """Trains a run again up to a step, unless training diverges; ``Work`` of a ``Sweep``."""

    past: "ReplayableRun"
    end_step: int

    def to(self, device: str) -> "Attempt":
        """Ignores the device: the run's configuration chooses it."""
        return self

    def __call__(self, variation: Variation, /) -> Weights | None:
        try:
            return trained_again(self.past, variation, self.end_step)
        except InfluenceError:
            return None


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
