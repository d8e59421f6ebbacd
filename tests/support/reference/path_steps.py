"""Path influence in one pass without stored segments, which resumable sweeps must equal."""

from collections.abc import Iterator, Sequence

from analysis.influence.path import PathStep, PathSweep
from analysis.influence.queries.query import Query
from analysis.run.run import Run
from capture.unrolled.states import MAX_BYTES, backward_steps


def path_steps(run: Run, queries: Sequence[Query], steps: range) -> Iterator[PathStep]:
    """Yield the parts of each of these steps in the change of the queries over them, last to first.

    The change is q(weights after the last of the steps) − q(weights before the first).
    """
    replayable, markers = run.gradients.replayable, [run.start, *run.segments]
    sweep = PathSweep(queries, replayable.plan.config.training.optimizer)
    for found in backward_steps(replayable, markers, steps, max_bytes=MAX_BYTES):
        yield sweep.step(found)
