"""Jobs: any split of the rows, merged in any order, gives the same answer (law 6)."""

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.jobs import Job, merge_all
from analysis.run import open_run
from analysis.samples import CountRows, RowCounts, SampleDatums, Samples, sum_by_key
from capture.errors import RunError, ShardError
from capture.gradients import Layout
from capture.schema import OUTLIERS
from cluster.local import run_job
from tiny_run import copied, tiny_run

LAYOUT = Layout({"a.weight": (3, 4), "a.bias": (3,), "b.weight": (5, 2)})
DATUMS = 6
GROUP_P = np.arange(LAYOUT.size) % 5 - 1


@dataclass(frozen=True)
class TableRows:
    """A shard that lies in memory."""

    table: pa.Table
    where: str = "rows"

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from self.table.select(list(columns)).to_batches(max_chunksize=7)


def random_rows(num_rows: int, seed: int) -> pa.Table:
    """Outliers of the layout in no particular order."""
    rng = np.random.default_rng(seed)
    unit_M = rng.integers(len(LAYOUT.names), size=num_rows).astype(np.int16)
    columns = {
        "step": rng.integers(9, size=num_rows),
        "slot": rng.integers(4, size=num_rows),
        "datum": rng.integers(DATUMS, size=num_rows),
        "unit": pa.DictionaryArray.from_arrays(unit_M, LAYOUT.names),
        "index": rng.integers(np.array(LAYOUT.sizes)[unit_M]),
        "shift": rng.normal(size=num_rows),
        "position": rng.integers(8, size=num_rows),
    }
    return pa.table(columns).cast(OUTLIERS)


def job_named(name: str) -> Job:
    if name == "CountRows":
        return CountRows(LAYOUT, DATUMS)
    return SampleDatums(LAYOUT, DATUMS, GROUP_P)


def arrays(answer: RowCounts | Samples) -> list[list[int]]:
    return [value.tolist() for value in vars(answer).values() if isinstance(value, np.ndarray)]


# --- law 6 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CountRows", "SampleDatums"])
@given(num_rows=st.integers(0, 60), cuts=st.sets(st.integers(0, 60)), seed=st.integers(0, 10**6))
def test_merging_any_cut_in_any_order_equals_the_whole(
    name: str, num_rows: int, cuts: set[int], seed: int
) -> None:
    table, job = random_rows(num_rows, seed), job_named(name)
    bounds = [0, *sorted(cut for cut in cuts if cut < num_rows), num_rows]
    parts = [table.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    partials = [job.map_shard(TableRows(part)) for part in parts]
    random.Random(seed).shuffle(partials)
    whole = job.finish(job.map_shard(TableRows(table)))
    assert arrays(job.finish(merge_all(partials, job.merge))) == arrays(whole)
    assert arrays(job.finish(functools.reduce(job.merge, partials))) == arrays(whole)


@pytest.mark.parametrize("name", ["CountRows", "SampleDatums"])
def test_the_order_of_rows_in_a_shard_does_not_matter(name: str) -> None:
    table, job = random_rows(50, 0), job_named(name)
    shuffled = table.take(np.random.default_rng(1).permutation(50))
    assert arrays(job.map_shard(TableRows(table))) == arrays(job.map_shard(TableRows(shuffled)))


# --- against plain loops --------------------------------------------------------------------------


@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_row_counts_equal_a_plain_loop(num_rows: int, seed: int) -> None:
    table = random_rows(num_rows, seed)
    found = CountRows(LAYOUT, DATUMS).map_shard(TableRows(table))
    parameter_P, datum_N = np.zeros(LAYOUT.size, int), np.zeros(DATUMS, int)
    for row in table.to_pylist():
        parameter_P[LAYOUT.offsets[LAYOUT.names.index(row["unit"])] + row["index"]] += 1
        datum_N[row["datum"]] += 1
    assert arrays(found) == [parameter_P.tolist(), datum_N.tolist()]


@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_samples_equal_a_plain_loop(num_rows: int, seed: int) -> None:
    table = random_rows(num_rows, seed)
    found = SampleDatums(LAYOUT, DATUMS, GROUP_P).map_shard(TableRows(table))
    rows_GN = np.zeros((4, DATUMS), int)
    for row in table.to_pylist():
        place = LAYOUT.offsets[LAYOUT.names.index(row["unit"])] + row["index"]
        if GROUP_P[place] >= 0:
            rows_GN[GROUP_P[place], row["datum"]] += 1
    assert dense(found, 4).tolist() == rows_GN.tolist()
    for group in range(4):
        datum_K, rows_K = found.of(group)
        assert datum_K.tolist() == np.flatnonzero(rows_GN[group]).tolist()
        assert rows_K.tolist() == rows_GN[group][rows_GN[group] > 0].tolist()


@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_coarser_groups_hold_the_samples_of_the_finer(num_rows: int, seed: int) -> None:
    found = SampleDatums(LAYOUT, DATUMS, GROUP_P).map_shard(TableRows(random_rows(num_rows, seed)))
    coarse = found.regrouped(np.array([1, -1, 0, 1]))
    fine_GN = dense(found, 4)
    assert dense(coarse, 2).tolist() == [fine_GN[2].tolist(), (fine_GN[0] + fine_GN[3]).tolist()]


def dense(samples: Samples, groups: int) -> np.ndarray:
    rows_GN = np.zeros((groups, samples.num_datums), int)
    rows_GN[samples.group_K, samples.datum_K] = samples.rows_K
    return rows_GN


def test_sums_by_key_of_nothing_are_nothing() -> None:
    keys, rows = sum_by_key(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert (len(keys), len(rows)) == (0, 0)


# --- the merge tree and the local runner ----------------------------------------------------------


@given(st.integers(1, 200))
@settings(max_examples=50)
def test_the_tree_keeps_few_partials_and_is_shallow(num_partials: int) -> None:
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
    job = CountRows(run.layout, run.num_datums)
    told: list[tuple[int, int]] = []
    found = run_job(job, shards, lambda done, total: told.append((done, total)))
    whole = job.map_shard(TableRows(pa.concat_tables(tables).unify_dictionaries()))
    assert arrays(found) == arrays(whole)
    assert [total for _, total in told] == [sum(map(len, tables))] * len(shards)
    assert told[-1][0] == told[-1][1]


# --- damaged shards -------------------------------------------------------------------------------


def with_value(name: str, value: object) -> Callable[[], pa.Table]:
    def change() -> pa.Table:
        rows = random_rows(5, 0).to_pylist()
        rows[3] |= {"unit": "a.weight", name: value}
        return pa.Table.from_pylist(rows, schema=OUTLIERS)

    return change


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (with_value("unit", "c.weight"), "has rows of c.weight, which was not captured"),
        (with_value("index", 12), r"has rows of a.weight\[12\], which does not exist"),
        (with_value("index", -1), r"has rows of a.weight\[-1\], which does not exist"),
        (with_value("datum", 6), "has datums . to 6, the corpus has 6"),
    ],
)
def test_rows_that_cannot_be_are_named(make: Callable[[], pa.Table], problem: str) -> None:
    with pytest.raises(ShardError, match=f"^shard: {problem}. Run: ontogeny verify"):
        CountRows(LAYOUT, DATUMS).map_shard(TableRows(make(), "shard"))


def test_a_job_stops_at_a_missing_shard_and_names_it() -> None:
    store = copied(tiny_run(), "memory://job-missing")
    store.delete("outliers/segment-000002-w00.parquet")
    run = open_run(store.uri)
    with pytest.raises(ShardError, match=r"segment-000002-w00\.parquet: is missing"):
        run_job(CountRows(run.layout, run.num_datums), run.shards("outliers"))


def test_a_run_without_segments_is_refused() -> None:
    store = copied(tiny_run(), "memory://job-empty")
    for key in store.keys("segments"):
        if "segment-" in key:
            store.delete(key)
    with pytest.raises(RunError, match="holds no committed segment yet"):
        open_run(store.uri).require_shards("outliers")
