"""Law 6 as a check: any split of the rows into shards, merged in any order, equals the whole."""

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from hypothesis import strategies as st
from table_rows import TableRows

from analysis.jobs.job import Job, merge_all

AssertSame = Callable[[Any, Any], None]


class Mergeable(Protocol):
    """The part of a job that the law is about."""

    def merge(self, a: Any, b: Any) -> Any: ...

    def finish(self, partial: Any) -> Any: ...


@dataclass(frozen=True)
class Split:
    """A way to cut rows into consecutive parts, and an order to merge them in."""

    num_rows: int
    cuts: frozenset[int]
    seed: int

    @property
    def parts(self) -> list[slice]:
        """The parts in a random order; a cut at 0 makes an empty one."""
        inside = sorted(cut for cut in self.cuts if cut < self.num_rows)
        parts = [slice(*pair) for pair in itertools.pairwise([0, *inside, self.num_rows])]
        random.Random(self.seed).shuffle(parts)
        return parts


def splits(max_rows: int, *, min_rows: int = 0, first_cut: int = 0) -> st.SearchStrategy[Split]:
    """Splits of ``min_rows`` to ``max_rows`` rows; ``first_cut=1`` leaves out empty parts."""
    cuts = st.frozensets(st.integers(first_cut, max(first_cut, max_rows - 1)))
    return st.builds(Split, st.integers(min_rows, max_rows), cuts, st.integers(0, 10**6))


def check_merge_law(
    job: Mergeable, split: Split, map_part: Callable[[slice], Any], assert_same: AssertSame
) -> None:
    """Merge the parts in a tree and one after the other; both must give what the whole gives."""
    whole = job.finish(map_part(slice(0, split.num_rows)))
    partials = [map_part(part) for part in split.parts]
    assert_same(job.finish(merge_all(partials, job.merge)), whole)
    assert_same(job.finish(functools.reduce(job.merge, partials)), whole)


def check_merge_law_of_rows(
    job: Job, table: pa.Table, split: Split, assert_same: AssertSame
) -> None:
    """``check_merge_law`` for a job that maps rows of a table; the split is one of its rows."""

    def map_part(part: slice) -> Any:
        return job.map_shard(TableRows(table.slice(part.start, part.stop - part.start)))

    check_merge_law(job, split, map_part, assert_same)
