"""Scores of a run's training datums by every method, for all training or step by step.

Shapes: Q query, D datum, N datum of a step (slot), T position.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.influence.baselines.methods import BASELINES
from analysis.influence.path import path_steps
from analysis.influence.queries.query import Query
from analysis.run.run import Run
from capture.errors import ConfigError

StepScores = Iterator[tuple[int, np.ndarray, np.ndarray]]
"""Step, datums by slot [N], scores [Q, N]."""
Report = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Scores:
    """One method's scores: the higher, the more the datum raises the query."""

    total_QD: np.ndarray
    by_step: dict[int, np.ndarray] = field(default_factory=dict)
    """Scores of the datums of each step by slot, [Q, N]; empty for methods that do not tell."""

    def of_slot(self, step: int, slot: int, datum: int) -> np.ndarray:
        """Return the scores of one datum in one step, or its total where steps are not told."""
        if self.by_step:
            return self.by_step[step][:, slot]
        return self.total_QD[:, datum]


def unrolled_scores(run: Run, queries: Sequence[Query], report: Report) -> StepScores:
    """Yield the derivative of each query by each datum's weight in each step, last step first."""
    from capture.unrolled.adjoint import Adjoint  # these load the training engine
    from capture.unrolled.reverse import unroll

    weights = {name: own.detach() for name, own in run.network().named_parameters()}
    gradients = [query.gradient(weights)[1] for query in queries]
    past = run.gradients.replayable
    adjoint = Adjoint.at_end(gradients, past.plan.config.training.optimizer)
    steps, markers = range(run.steps_done), [run.start, *run.segments]
    for found in unroll(past, markers, adjoint, steps, report=report):
        yield found.step, found.datum_N, found.influence_QNT.sum(2)


def path_scores(run: Run, queries: Sequence[Query], report: Report) -> StepScores:
    """Yield each datum's part in the change of each query in each step, last step first."""
    for found in path_steps(run, queries, range(run.steps_done), report=report):
        yield found.step, found.datum_N, found.influence_QNT.sum(2)


SWEEPS = {"unrolled": unrolled_scores, "path": path_scores}
"""Methods that go through the steps of training."""
METHODS = (*SWEEPS, *BASELINES)


def require_methods(names: Sequence[str]) -> None:
    """Raise ``ConfigError`` for an unknown method, or for none."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "none"
        raise ConfigError("methods", f"got {found}, must be some of: {', '.join(METHODS)}")


def method_scores(
    run: Run, queries: Sequence[Query], method: str, report: Report = lambda: None
) -> Scores:
    """Return the scores of a method; ``report`` is called after every step of a sweep."""
    if method in BASELINES:
        return Scores(BASELINES[method](run, queries))
    total_QD, by_step = np.zeros((len(queries), run.num_datums)), {}
    for step, datum_N, score_QN in SWEEPS[method](run, queries, report):
        by_step[step] = score_QN
        np.add.at(total_QD.T, datum_N, score_QN.T)
    return Scores(total_QD, by_step)
