"""The three-function job, and how partial results become one.

Every analysis that reads shards is a ``Job``: ``map_shard`` turns one shard into a partial result,
``merge`` makes one of two, ``finish`` turns the last one into the answer. ``merge`` is associative
and commutative, so any split of the rows into shards, merged in any order, gives the same answer
(law 6). A job is plain data: it can be sent to another machine and run there. *Where* it runs is
the runner's choice, which is why analyses take the runner as an argument.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import pyarrow as pa

from analysis.run.scan import Shard, Wanted

Partial = TypeVar("Partial")
Answer = TypeVar("Answer", covariant=True)
Result = TypeVar("Result")


class Rows(Protocol):
    """What a job sees of a shard: a name for messages, and its rows."""

    @property
    def where(self) -> str: ...

    def batches(
        self, columns: Sequence[str], wanted: Wanted | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Its rows; parts without any wanted value may be passed over."""
        ...


class Job(Protocol[Partial, Answer]):
    """Three pure functions; partial results are arrays, never dictionaries of tokens."""

    def map_shard(self, shard: Rows) -> Partial: ...

    def merge(self, a: Partial, b: Partial) -> Partial: ...

    def finish(self, partial: Partial) -> Answer: ...


class Runner(Protocol):
    """Carries a job out over some shards (at least one), here or on many machines."""

    def __call__(self, job: Job[Partial, Result], shards: Sequence[Shard]) -> Result: ...


def merge_all(partials: Iterable[Partial], merge: Callable[[Partial, Partial], Partial]) -> Partial:
    """Merge partial results as they come, in a tree: of n, at most log₂ n + 1 exist at once.

    Each takes part in about log₂ n merges, as in a counter of binary digits. Needs at least one.
    """
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
