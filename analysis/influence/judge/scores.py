"""Scores of a run's training datums by every method, for all training or step by step.

Shapes: Q query, D datum, N datum of a step (slot), T position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from analysis.influence.baselines.methods import BASELINES
from analysis.influence.config import METHODS, SWEEPS
from analysis.influence.queries.query import Query
from analysis.influence.sums import InfluenceSums, SumShape
from analysis.influence.sweeps import begin_sweep
from analysis.run.run import Run
from capture.errors import ConfigError

Report = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Scores:
    """One method's scores: the higher, the more the datum raises the query."""

    total_QD: np.ndarray
    by_step: dict[int, np.ndarray] = field(default_factory=dict)
    """Scores of the datums of each step by slot, [Q, N]; empty for methods that do not tell. A
    sweep that ended early lacks the first steps, whose scores are 0."""
    first_step: int = 0
    """Contributions of earlier steps are beyond the horizon of a query."""

    def of_slot(self, step: int, slot: int, datum: int) -> np.ndarray:
        """Return the scores of one datum in one step, or its total where steps are not told."""
        if step in self.by_step:
            return self.by_step[step][:, slot]
        return np.zeros(len(self.total_QD)) if self.by_step else self.total_QD[:, datum]


def require_methods(names: Sequence[str]) -> None:
    """Raise ``ConfigError`` for an unknown method, or for none."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "none"
        raise ConfigError("methods", f"got {found}, must be some of: {', '.join(METHODS)}")


def method_scores(
    run: Run, queries: Sequence[Query], method: str, report: Report = lambda: None
) -> Scores:
    """Return the scores of a method, as ``ontogeny influence`` reports them.

    Contributions beyond the horizon count 0. ``report`` is called ``num_reports`` times.
    """
    if method in BASELINES:
        found = Scores(BASELINES[method](run, queries))
        report()
        return found
    from capture.unrolled.states import MAX_BYTES  # loads the training engine

    steps, by_step = range(run.steps_done), {}
    sweep = begin_sweep(run, queries, method)
    shape = SumShape(len(queries), run.num_datums, positions=1, units=0, windows=(steps,))
    sums = InfluenceSums(shape, sweep.norm_at_end_Q)
    for step in sweep.steps(steps, MAX_BYTES):
        whole = replace(step, influence_QNT=step.influence_QNT.sum(2, keepdims=True))
        by_step[step.step] = sums.add(whole)
        report()
    for _ in range(len(steps) - len(by_step)):
        report()
    first_step = steps.stop if sums.common_from is None else sums.common_from
    return Scores(sums.total_QD, by_step, first_step)


def num_reports(run: Run, method: str) -> int:
    """Return how often ``method_scores`` reports: once, or once for every step of a sweep."""
    return run.steps_done if method in SWEEPS else 1
