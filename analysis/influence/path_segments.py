"""Path influence of a run's segments, each by itself, so that several machines can share them.

Under SGD without momentum a gradient moves the weights in its own step alone. No segment then needs
what a later one found, and the segments can be replayed in any order (``is_possible``). With
momentum, the influence of a gradient depends on the query's gradients in all later steps, and the
segments are taken one after the other.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.influence.sweeps import PathMethod, SweepStep
from analysis.jobs.sweep import Sweep
from analysis.run.run import Run, open_run
from capture.optim.optimizer import first_moment_weight


def is_possible(run: Run, method: str) -> bool:
    """Return whether a method replays the segments of a run, independent of each other."""
    if method != "path" or run.from_custom_loop:
        return False
    return not first_moment_weight(run.config.training.optimizer)


def path_of_segments(
    run: Run,
    queries: Sequence[Query],
    units: tuple[str, ...],
    max_bytes: int,
    sweep: Sweep | None,
    segments: Sequence[range],
) -> Iterator[list[SweepStep]]:
    """Yield the steps of each of the given segments, last first, in the order of the segments.

    ``sweep``: the machines to work on; None computes here. The numbers do not depend on it.
    ``max_bytes``: bound on the memory for the states of a segment, on each machine.
    """
    if sweep is None:
        for steps in segments:
            yield list(PathMethod.begin(run, queries, units).steps(steps, max_bytes))
    elif segments:
        asked = json.dumps([dict(query.description) for query in queries])
        yield from sweep(PathSegments(run.uri, asked, units, max_bytes), segments)


@dataclass(frozen=True)
class PathSegments:
    """The work on each segment, as ``Sweep`` takes it; small enough to be sent to a machine."""

    uri: str
    asked: str
    """Descriptions of the queries as JSON, from which they are built again."""
    units: tuple[str, ...]
    max_bytes: int

    def to(self, device: str) -> "PathSegments":
        """Ignores the device: the run's configuration chooses it."""
        return self

    def __call__(self, steps: range, /) -> list[SweepStep]:
        """Return what is found in the steps of a segment, last first."""
        run, queries = opened(self.uri, self.asked)
        return list(PathMethod.begin(run, queries, self.units).steps(steps, self.max_bytes))


@functools.lru_cache(maxsize=1)
def opened(uri: str, asked: str) -> tuple[Run, list[Query]]:
    """Open a run and build queries about it once for all segments of a process."""
    run = open_run(uri)
    return run, build_queries(run, json.loads(asked))
