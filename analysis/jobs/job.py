"""Jobs: map, merge and finish over shards.

An analysis that reads shards is a ``Job``: ``map_shard`` turns one shard into a partial result,
``merge`` combines two partial results, ``finish`` turns the last one into the answer. ``merge`` is
associative and commutative, so any split of the rows into shards, merged in any order, gives the
same answer (law 6). A job can be pickled and run on another machine. The runner decides where it
runs, so analyses take the runner as an argument.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import pyarrow as pa

from analysis.run.scan import Shard, Wanted

Partial = TypeVar("Partial")
Answer = TypeVar("Answer", covariant=True)
Result = TypeVar("Result")


class Rows(Protocol):
    """A shard as a job sees it: a name for messages, and its rows."""

    @property
    def where(self) -> str: ...

    def batches(
        self, columns: Sequence[str], wanted: Wanted | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield its rows; parts without any wanted value may be skipped."""
        ...


class Job(Protocol[Partial, Answer]):
    """Three pure functions. Partial results are arrays, which are small and fast to merge."""

    def map_shard(self, shard: Rows) -> Partial: ...

    def merge(self, a: Partial, b: Partial) -> Partial: ...

    def finish(self, partial: Partial) -> Answer: ...


class Runner(Protocol):
    """Runs a job over at least one shard, in this process or on many machines."""

    def __call__(self, job: Job[Partial, Result], shards: Sequence[Shard]) -> Result: ...


def merge_all(partials: Iterable[Partial], merge: Callable[[Partial, Partial], Partial]) -> Partial:
    """Merge at least one partial result, in a binary tree, as they arrive.

    At most log₂ n + 1 of n partial results exist at once, and each takes part in about log₂ n
    merges. Neighbours are merged, so the order of arguments is that of ``partials``.
    """
    # As in a binary counter: two trees of equal height become one that is higher by one.
    tree: list[tuple[int, Partial]] = []
    for partial in partials:
        height = 0
        while tree and tree[-1][0] == height:
            partial = merge(tree.pop()[1], partial)
            height += 1
        tree.append((height, partial))
    _, whole = tree.pop()
    while tree:
        whole = merge(tree.pop()[1], whole)
    return whole
