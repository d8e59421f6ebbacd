"""Jobs: any split of the rows, merged in any order, gives the same answer (law 6)."""

import functools
import itertools
import pickle
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.evidence import Outlying, Reading, Weighing, Weight
from analysis.jobs import Job, Rows, merge_all
from analysis.lessons import TellLessons
from analysis.levels import groups_at
from analysis.outlying import ScaleRows, SizeRows, scale_groups
from analysis.run import open_run
from analysis.samples import CollectEvidence, CountRows
from analysis.strongest import Pairs
from analysis.sums import Sums, origin_bit, united_bits
from analysis.weights import StartWeights
from capture.errors import RunError, ShardError
from capture.gradients import Layout
from capture.schema import OUTLIERS
from capture.store import Store
from cluster.local import run_job
from table_rows import TableRows
from tiny_run import copied, tiny_run

LAYOUT = Layout({"a.linear1.weight": (3, 4), "a.linear1.bias": (3,), "b.linear2.weight": (5, 2)})
DATUMS, WINDOW, TOKENS, STEPS = 6, 8, 9, 9
READING = Reading(LAYOUT, DATUMS, WINDOW)
GROUPS = groups_at("neuron", LAYOUT, heads=1)
TOKEN_NT = np.random.default_rng(5).integers(TOKENS, size=(DATUMS, WINDOW)).astype(np.int32)
WEIGHTS_2P = np.random.default_rng(6).choice([-1, 0, 0.5, 2], size=(2, LAYOUT.size))
STARTS = StartWeights(Store("memory://nowhere"), LAYOUT, (0, 4))
STARTS.kept.update(zip((0, 4), WEIGHTS_2P.astype(np.float32), strict=True))


def random_rows(num_rows: int, seed: int) -> pa.Table:
    """Outliers of the layout in no particular order; shifts are eighths, whose sums are exact."""
    rng = np.random.default_rng(seed)
    unit_M = rng.integers(len(LAYOUT.names), size=num_rows).astype(np.int16)
    columns = {
        "step": rng.integers(STEPS, size=num_rows),
        "slot": rng.integers(4, size=num_rows),
        "datum": rng.integers(DATUMS, size=num_rows),
        "unit": pa.DictionaryArray.from_arrays(unit_M, LAYOUT.names),
        "index": rng.integers(np.array(LAYOUT.sizes)[unit_M]),
        "shift": rng.choice([-4, -1, 1, 2, 8], size=num_rows) / 8,
        "position": rng.integers(WINDOW, size=num_rows),
    }
    return pa.table(columns).cast(OUTLIERS)


def collecting(weight: Weight, token_NT: np.ndarray | None = TOKEN_NT) -> CollectEvidence:
    return CollectEvidence(READING, GROUPS, Weighing(weight, STARTS), token_NT, TOKENS)


def telling(weight: Weight, *, whole_windows: bool) -> TellLessons:
    """Two windows of training; lessons and pairs for most groups, not all."""
    group_J, token_J = np.divmod(np.arange(0, GROUPS.num_groups * TOKENS, 2), TOKENS)
    group_K, datum_K = np.divmod(np.arange(1, GROUPS.num_groups * DATUMS, 3), DATUMS)
    return TellLessons(
        reading=READING,
        groups=GROUPS,
        weighing=Weighing(weight, STARTS),
        weights=STARTS,
        token_NT=TOKEN_NT,
        whole_windows=whole_windows,
        group_J=group_J,
        token_J=token_J,
        num_tokens=TOKENS,
        first_steps=np.array([0, 5]),
        pairs=Pairs(group_K, datum_K, GROUPS.num_groups, DATUMS),
        pair_group_P=GROUPS.group_P,
    )


FEW = replace(READING, steps=range(2, 7), outlying=Outlying(np.ones(LAYOUT.size, "f4"), 0.25))
JOBS: dict[str, Job] = {
    "CountRows": CountRows(READING),
    "CountRows, of some": CountRows(FEW),
    "CollectEvidence, counts": collecting("count"),
    "CollectEvidence, shifts": collecting("shift"),
    "CollectEvidence, effects": collecting("effect"),
    "CollectEvidence, windows": collecting("count", None),
    "TellLessons": telling("count", whole_windows=False),
    "TellLessons, effects": telling("effect", whole_windows=False),
    "TellLessons, windows": telling("shift", whole_windows=True),
    "ScaleRows": ScaleRows(READING, scale_groups("neuron", LAYOUT)),
    "SizeRows": SizeRows(READING, np.full(LAYOUT.size, 0.3, np.float32)),
}


def arrays(answer: object) -> list[Any]:
    """All arrays within an answer, to the last bit."""
    if isinstance(answer, np.ndarray):
        return [answer.shape, answer.dtype, answer.tobytes()]
    if isinstance(answer, int):
        return [answer]
    return [arrays(value) for value in vars(answer).values()]


# --- law 6 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
@given(num_rows=st.integers(0, 60), cuts=st.sets(st.integers(0, 60)), seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_merging_any_cut_in_any_order_equals_the_whole(
    name: str, num_rows: int, cuts: set[int], seed: int
) -> None:
    table, job = random_rows(num_rows, seed), JOBS[name]
    bounds = [0, *sorted(cut for cut in cuts if cut < num_rows), num_rows]
    parts = [table.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    partials = [job.map_shard(TableRows(part)) for part in parts]
    random.Random(seed).shuffle(partials)
    whole = job.finish(job.map_shard(TableRows(table)))
    assert arrays(job.finish(merge_all(partials, job.merge))) == arrays(whole)
    assert arrays(job.finish(functools.reduce(job.merge, partials))) == arrays(whole)


@pytest.mark.parametrize("name", JOBS)
def test_the_order_of_rows_in_a_shard_does_not_matter(name: str) -> None:
    table, job = random_rows(50, 0), JOBS[name]
    shuffled = table.take(np.random.default_rng(1).permutation(50))
    assert arrays(job.map_shard(TableRows(table))) == arrays(job.map_shard(TableRows(shuffled)))


@pytest.mark.parametrize("name", JOBS)
def test_rows_in_small_pieces_and_cells_by_sorting_give_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, job = random_rows(50, 0), JOBS[name]
    whole = arrays(job.map_shard(TableRows(table)))
    monkeypatch.setattr("analysis.evidence.ROWS_AT_ONCE", 9)
    monkeypatch.setattr("analysis.sums.CELLS_AT_ONCE", 3)
    assert arrays(job.map_shard(TableRows(table))) == whole


def test_a_job_survives_the_way_to_another_machine() -> None:
    job = pickle.loads(pickle.dumps(collecting("effect")))
    assert job.weighing.weights.kept == {}
    job.weighing.weights.kept.update(STARTS.kept)
    rows = TableRows(random_rows(50, 0))
    assert arrays(job.map_shard(rows)) == arrays(collecting("effect").map_shard(rows))


# --- against plain loops --------------------------------------------------------------------------


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows with their parameter's place, group, weight at the start, and token."""
    rows = table.to_pylist()
    for row in rows:
        row["place"] = LAYOUT.offsets[LAYOUT.names.index(row["unit"])] + row["index"]
        columns = {"a.linear1.weight": 4, "b.linear2.weight": 2}.get(row["unit"])
        first = 0 if row["unit"].startswith("a") else 4
        row["group"] = first + row["index"] % columns if columns else None
        row["start"] = float(WEIGHTS_2P[int(row["step"] >= 4), row["place"]])
        row["token"] = int(TOKEN_NT[row["datum"], row["position"]])
    return rows


def plain_weight(row: dict[str, Any], weight: str) -> float:
    if weight == "count":
        return 1.0
    return abs(row["shift"]) * (abs(row["start"]) if weight == "effect" else 1.0)


@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_row_counts_equal_a_plain_loop(num_rows: int, seed: int) -> None:
    table = random_rows(num_rows, seed)
    rows_P, few_P = np.zeros(LAYOUT.size, int), np.zeros(LAYOUT.size, int)
    for row in plain_rows(table):
        rows_P[row["place"]] += 1
        few_P[row["place"]] += 2 <= row["step"] < 7 and abs(row["shift"]) >= 0.25
    assert CountRows(READING).map_shard(TableRows(table)).tolist() == rows_P.tolist()
    assert CountRows(FEW).map_shard(TableRows(table)).tolist() == few_P.tolist()


@pytest.mark.parametrize("weight", ["count", "shift", "effect"])
@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_evidence_equals_a_plain_loop(weight: Weight, num_rows: int, seed: int) -> None:
    table = random_rows(num_rows, seed)
    found = collecting(weight).map_shard(TableRows(table))
    tokens, datums, places = (defaultdict[tuple[int, int], float](float) for _ in range(3))
    origins = defaultdict(set)
    for row in plain_rows(table):
        if row["group"] is not None:
            group, size = row["group"], plain_weight(row, weight)
            tokens[group, row["token"]] += size
            datums[group, row["datum"]] += size
            places[group, row["datum"] * WINDOW + row["position"]] += size
            origins[group, row["token"]].add((row["datum"], row["position"]))
    assert by_pair(found.tokens) == dict(tokens)
    assert by_pair(found.datums) == dict(datums)
    assert by_pair(found.places) == dict(places)
    assert found.rows_N.tolist() == np.bincount(table["datum"], minlength=DATUMS).tolist()
    for pair, number in zip(by_pair(found.tokens), found.tokens.origins_K, strict=True):
        assert number == pytest.approx(len(origins[pair]), abs=1.1)  # hashes may coincide


def by_pair(sums: Sums) -> dict[tuple[int, int], float]:
    pairs = zip(sums.group_K.tolist(), sums.item_K.tolist(), strict=True)
    return dict(zip(pairs, sums.value_CK[-1].tolist(), strict=True))


@pytest.mark.parametrize("whole_windows", [False, True])
@pytest.mark.parametrize("weight", ["count", "shift", "effect"])
@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_lessons_equal_a_plain_loop(
    whole_windows: bool, weight: Weight, num_rows: int, seed: int
) -> None:
    job = telling(weight, whole_windows=whole_windows)
    table = random_rows(num_rows, seed)
    found = job.map_shard(TableRows(table)).lessons
    wanted = {name: np.zeros_like(value) for name, value in vars(found).items()}
    lesson = {pair: j for j, pair in enumerate(zip(job.group_J, job.token_J, strict=True))}
    for row in plain_rows(table):
        if row["group"] is None:
            continue
        group, size, window = row["group"], plain_weight(row, weight), int(row["step"] >= 5)
        away = row["shift"] * row["start"] > 0 or row["start"] == 0
        for token in TOKEN_NT[row["datum"]].tolist() if whole_windows else [row["token"]]:
            wanted["group_WG"][window, group] += size
            family, column = int(group >= 4), np.searchsorted(job.token_S, token)
            wanted["family_WFS"][window, family, column] += size
            if (group, token) in lesson:
                j = lesson[group, token]
                wanted["rows_J"][j] += 1
                wanted["up_J"][j] += size * (row["shift"] > 0)
                wanted["strengthened_J"][j] += size * away
                wanted["weight_WJ"][window, j] += size
    for name, value in vars(found).items():
        assert value.tolist() == wanted[name].tolist(), name


@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_the_strongest_row_equals_a_plain_search(num_rows: int, seed: int) -> None:
    job, table = telling("count", whole_windows=False), random_rows(num_rows, seed)
    found = job.map_shard(TableRows(table)).strongest
    for k, pair in enumerate(zip(job.pairs.group_K, job.pairs.datum_K, strict=True)):
        own = [row for row in plain_rows(table) if (row["group"], row["datum"]) == pair]
        if not own:
            assert (found.step_K[k], np.isnan(found.shift_K[k])) == (-1, True)
            continue
        order = [(-abs(r["shift"]), r["step"], r["position"], -r["shift"]) for r in own]
        size, step, position, negative = min(order)
        assert found.step_K[k] == step
        assert found.position_K[k] == position
        assert found.shift_K[k] == -negative == np.sign(-negative) * -size


@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_coarser_groups_hold_the_sums_of_the_finer(num_rows: int, seed: int) -> None:
    fine = collecting("shift").map_shard(TableRows(random_rows(num_rows, seed))).tokens
    coarse = np.array([1, -1, 0, 1, 1, -1])
    wanted = defaultdict(float)
    for (group, token), value in by_pair(fine).items():
        if coarse[group] >= 0:
            wanted[coarse[group], token] += value
    assert by_pair(fine.regrouped(coarse)) == wanted


def test_origins_are_told_apart_up_to_a_hundred() -> None:
    for number in (1, 5, 20, 100):
        origin_M = np.arange(200).repeat(number) + np.tile(np.arange(number), 200)
        key_K, bits_K = united_bits(np.arange(200).repeat(number), origin_bit(origin_M))
        sums = Sums(1, key_K, np.zeros((1, 200)), bits_K)
        assert np.median(sums.origins_K) == pytest.approx(number, rel=0.1)
    assert Sums(1, np.arange(1), np.zeros((1, 1)), ~np.zeros(1, np.uint64)).origins_K[0] == np.inf


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
    job = CountRows(Reading(run.layout, run.num_datums, run.token_NT.shape[1]))
    told: list[tuple[int, int]] = []
    found = run_job(job, shards, lambda done, total: told.append((done, total)))
    whole = job.map_shard(TableRows(pa.concat_tables(tables).unify_dictionaries()))
    assert arrays(found) == arrays(whole)
    assert [total for _, total in told] == [sum(map(len, tables))] * len(shards)
    assert told[-1][0] == told[-1][1]


@dataclass(frozen=True)
class Slow:
    """A job whose first shards take longest, and whose merging shows the order."""

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


# --- damaged shards -------------------------------------------------------------------------------


def with_value(name: str, value: object) -> Callable[[], pa.Table]:
    def change() -> pa.Table:
        rows = random_rows(5, 0).to_pylist()
        rows[3] |= {"unit": "a.linear1.weight", name: value}
        return pa.Table.from_pylist(rows, schema=OUTLIERS)

    return change


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (with_value("unit", "c.weight"), "has rows of c.weight, which was not captured"),
        (with_value("index", 12), r"has rows of a.linear1.weight\[12\], which does not exist"),
        (with_value("index", -1), r"has rows of a.linear1.weight\[-1\], which does not exist"),
        (with_value("datum", 6), "has datums . to 6, the corpus has 6"),
        (with_value("position", 8), "has positions . to 8, a datum has 8"),
    ],
)
def test_rows_that_cannot_be_are_named(make: Callable[[], pa.Table], problem: str) -> None:
    with pytest.raises(ShardError, match=f"^shard: {problem}. Run: ontogeny verify"):
        collecting("count").map_shard(TableRows(make(), "shard"))


def test_a_job_stops_at_a_missing_shard_and_names_it() -> None:
    store = copied(tiny_run(), "memory://job-missing")
    store.delete("outliers/segment-000002-w00.parquet")
    run = open_run(store.uri)
    job = CountRows(Reading(run.layout, run.num_datums, 8))
    with pytest.raises(ShardError, match=r"segment-000002-w00\.parquet: is missing"):
        run_job(job, run.shards("outliers"))


def test_a_run_without_segments_is_refused() -> None:
    store = copied(tiny_run(), "memory://job-empty")
    for key in store.keys("segments"):
        if "segment-" in key:
            store.delete(key)
    with pytest.raises(RunError, match="holds no committed segment yet"):
        open_run(store.uri).require_shards("outliers")
