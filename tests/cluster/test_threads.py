"""The merge tree, and the runner of jobs on this machine."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outlier_jobs import (
    arrays,
)
from table_rows import TableRows
from tiny_run import tiny_run

from analysis.attribution.collect import CountRows
from analysis.attribution.outlier_weights import RowReader
from analysis.jobs.job import Rows, merge_all
from analysis.run.run import open_run
from capture.errors import ShardError
from capture.shards.schema import OUTLIERS
from cluster.local.threads import run_job


@given(st.integers(1, 200))
@settings(max_examples=50)
def test_the_merge_tree_keeps_few_partials_and_is_shallow(num_partials: int) -> None:
    alive, most_alive = 0, 0

    def partials() -> Iterator[tuple[int, int]]:
        nonlocal alive, most_alive
        for _ in range(num_partials):
            alive += 1
            most_alive = max(most_alive, alive)
            yield 1, 0

    def merge(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        nonlocal alive
        alive -= 1
        return a[0] + b[0], max(a[1], b[1]) + 1

    size, depth = merge_all(partials(), merge)
    assert (size, alive) == (num_partials, 1)
    assert most_alive <= np.log2(num_partials) + 2  # the one that has just come included
    assert depth <= np.log2(num_partials) + 1


def test_the_local_runner_equals_one_shard_with_all_rows() -> None:
    run = open_run(tiny_run())
    shards = run.shards("outliers")
    tables = [shard.table(OUTLIERS.names) for shard in shards]
    job = CountRows(RowReader(run.layout, run.num_datums, run.token_NT.shape[1]))
    reported: list[tuple[int, int]] = []
    found = run_job(job, shards, lambda done, total: reported.append((done, total)))
    whole = job.map_shard(TableRows(pa.concat_tables(tables).unify_dictionaries()))
    assert arrays(found) == arrays(whole)
    assert [total for _, total in reported] == [sum(map(len, tables))] * len(shards)
    assert reported[-1][0] == reported[-1][1]


@dataclass(frozen=True)
class Slow:
    """A job whose first shards take longest. Merging joins names, which shows the order."""

    fails: str = ""
    under_way: list[str] = field(default_factory=list)
    most: list[int] = field(default_factory=list)

    def map_shard(self, shard: Rows) -> str:
        self.under_way.append(shard.where)
        self.most.append(len(self.under_way))
        if shard.where == self.fails:
            raise ShardError(shard.where, "is bad")
        threading.Event().wait(0.002 * (9 - int(shard.where)))
        self.under_way.remove(shard.where)
        return shard.where

    def merge(self, a: str, b: str) -> str:
        return a + b

    def finish(self, partial: str) -> str:
        return partial


def test_threads_merge_in_the_order_of_shards_and_few_run_at_a_time() -> None:
    shards: Any = [SimpleNamespace(where=str(i), rows=1) for i in range(9)]
    job = Slow()
    assert run_job(job, shards, threads=3) == "012345678"
    assert 1 < max(job.most) <= 3


def test_what_a_shard_raises_ends_the_job() -> None:
    shards: Any = [SimpleNamespace(where=str(i), rows=1) for i in range(9)]
    job = Slow(fails="2")
    with pytest.raises(ShardError, match="2: is bad"):
        run_job(job, shards, threads=2)
    assert len(job.most) < 9
