"""Jobs: any split of the rows, merged in any order, gives the same answer (law 6)."""

import pickle
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_law import Split, check_merge_law_of_rows, splits
from outlier_jobs import (
    DATUMS,
    LAYOUT,
    READER,
    STARTS,
    TOKEN_NT,
    WEIGHTS_2P,
    WINDOW,
    arrays,
    collect_job,
    history_job,
    random_rows,
)
from table_rows import TableRows
from tiny_run import copied, tiny_run

from analysis.attribution.collect import CountRows
from analysis.attribution.outlier_notions import CountBySize, FindScales, scale_groups
from analysis.attribution.outlier_weights import OutlierFilter, RowReader, Weight
from analysis.attribution.sparse_sums import SparseSums, origin_bit, union_bits
from analysis.jobs.job import Job
from analysis.run.run import open_run
from capture.errors import RunError, ShardError
from capture.shards.schema import OUTLIERS
from cluster.local.threads import run_job

FEW = replace(
    READER, steps=range(2, 7), outlier_filter=OutlierFilter(np.ones(LAYOUT.size, "f4"), 0.25)
)
JOBS: dict[str, Job] = {
    "CountRows": CountRows(READER),
    "CountRows, of some": CountRows(FEW),
    "CollectEvidence, counts": collect_job("count"),
    "CollectEvidence, shifts": collect_job("shift"),
    "CollectEvidence, effects": collect_job("effect"),
    "CollectEvidence, windows": collect_job("count", None),
    "TokenHistoryJob": history_job("count", whole_windows=False),
    "TokenHistoryJob, effects": history_job("effect", whole_windows=False),
    "TokenHistoryJob, windows": history_job("shift", whole_windows=True),
    "FindScales": FindScales(READER, scale_groups("neuron", LAYOUT)),
    "CountBySize": CountBySize(READER, np.full(LAYOUT.size, 0.3, np.float32)),
}


# --- law 6 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
@given(split=splits(60))
@settings(max_examples=30)
def test_merging_any_split_in_any_order_equals_the_whole(name: str, split: Split) -> None:
    table = random_rows(split.num_rows, split.seed)
    check_merge_law_of_rows(JOBS[name], table, split, assert_same_arrays)


def assert_same_arrays(found: object, wanted: object) -> None:
    assert arrays(found) == arrays(wanted)


@pytest.mark.parametrize("name", JOBS)
def test_the_order_of_rows_in_a_shard_does_not_matter(name: str) -> None:
    table, job = random_rows(50, 0), JOBS[name]
    shuffled = table.take(np.random.default_rng(1).permutation(50))
    assert arrays(job.map_shard(TableRows(table))) == arrays(job.map_shard(TableRows(shuffled)))


@pytest.mark.parametrize("name", JOBS)
def test_batch_size_and_the_method_of_summing_change_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, job = random_rows(50, 0), JOBS[name]
    whole = arrays(job.map_shard(TableRows(table)))
    monkeypatch.setattr("analysis.attribution.outlier_weights.ROWS_AT_ONCE", 9)
    monkeypatch.setattr("analysis.attribution.sparse_sums.CELLS_AT_ONCE", 3)
    assert arrays(job.map_shard(TableRows(table))) == whole


def test_a_pickled_job_gives_the_same_result_without_the_weights_it_held() -> None:
    job = pickle.loads(pickle.dumps(collect_job("effect")))
    assert job.weighting.weights.kept == {}
    job.weighting.weights.kept.update(STARTS.kept)
    rows = TableRows(random_rows(50, 0))
    assert arrays(job.map_shard(rows)) == arrays(collect_job("effect").map_shard(rows))


# --- against plain loops --------------------------------------------------------------------------


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows with their parameter's position, group, starting weight and token."""
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
    assert CountRows(READER).map_shard(TableRows(table)).tolist() == rows_P.tolist()
    assert CountRows(FEW).map_shard(TableRows(table)).tolist() == few_P.tolist()


@pytest.mark.parametrize("weight", ["count", "shift", "effect"])
@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_evidence_equals_a_plain_loop(weight: Weight, num_rows: int, seed: int) -> None:
    table = random_rows(num_rows, seed)
    found = collect_job(weight).map_shard(TableRows(table))
    tokens, datums, sites = (defaultdict[tuple[int, int], float](float) for _ in range(3))
    origins = defaultdict(set)
    for row in plain_rows(table):
        if row["group"] is not None:
            group, size = row["group"], plain_weight(row, weight)
            tokens[group, row["token"]] += size
            datums[group, row["datum"]] += size
            sites[group, row["datum"] * WINDOW + row["position"]] += size
            origins[group, row["token"]].add((row["datum"], row["position"]))
    assert by_pair(found.tokens) == dict(tokens)
    assert by_pair(found.datums) == dict(datums)
    assert by_pair(found.sites) == dict(sites)
    assert found.rows_N.tolist() == np.bincount(table["datum"], minlength=DATUMS).tolist()
    for pair, number in zip(by_pair(found.tokens), found.tokens.origins_K, strict=True):
        assert number == pytest.approx(len(origins[pair]), abs=1.1)  # hashes may coincide


def by_pair(sums: SparseSums) -> dict[tuple[int, int], float]:
    pairs = zip(sums.group_K.tolist(), sums.item_K.tolist(), strict=True)
    return dict(zip(pairs, sums.value_CK[-1].tolist(), strict=True))


@pytest.mark.parametrize("whole_windows", [False, True])
@pytest.mark.parametrize("weight", ["count", "shift", "effect"])
@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_token_history_equals_a_plain_loop(
    whole_windows: bool, weight: Weight, num_rows: int, seed: int
) -> None:
    job = history_job(weight, whole_windows=whole_windows)
    table = random_rows(num_rows, seed)
    found = job.map_shard(TableRows(table)).history
    wanted = {name: np.zeros_like(value) for name, value in vars(found).items()}
    chosen = {pair: j for j, pair in enumerate(zip(job.group_J, job.token_J, strict=True))}
    for row in plain_rows(table):
        if row["group"] is None:
            continue
        group, size, window = row["group"], plain_weight(row, weight), int(row["step"] >= 5)
        away = row["shift"] * row["start"] > 0 or row["start"] == 0
        for token in TOKEN_NT[row["datum"]].tolist() if whole_windows else [row["token"]]:
            wanted["group_WG"][window, group] += size
            family, column = int(group >= 4), np.searchsorted(job.token_S, token)
            wanted["family_WFS"][window, family, column] += size
            if (group, token) in chosen:
                j = chosen[group, token]
                wanted["rows_J"][j] += 1
                wanted["up_J"][j] += size * (row["shift"] > 0)
                wanted["strengthened_J"][j] += size * away
                wanted["weight_WJ"][window, j] += size
    for name, value in vars(found).items():
        assert value.tolist() == wanted[name].tolist(), name


@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_the_strongest_row_equals_a_plain_search(num_rows: int, seed: int) -> None:
    job, table = history_job("count", whole_windows=False), random_rows(num_rows, seed)
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
def test_regrouped_sums_are_those_of_the_finer_groups(num_rows: int, seed: int) -> None:
    fine = collect_job("shift").map_shard(TableRows(random_rows(num_rows, seed))).tokens
    coarse = np.array([1, -1, 0, 1, 1, -1])
    wanted = defaultdict(float)
    for (group, token), value in by_pair(fine).items():
        if coarse[group] >= 0:
            wanted[coarse[group], token] += value
    assert by_pair(fine.regrouped(coarse)) == wanted


def test_the_number_of_origins_is_estimated_within_ten_per_cent_up_to_a_hundred() -> None:
    for number in (1, 5, 20, 100):
        origin_M = np.arange(200).repeat(number) + np.tile(np.arange(number), 200)
        key_K, bits_K = union_bits(np.arange(200).repeat(number), origin_bit(origin_M))
        sums = SparseSums(1, key_K, np.zeros((1, 200)), bits_K)
        assert np.median(sums.origins_K) == pytest.approx(number, rel=0.1)
    assert (
        SparseSums(1, np.arange(1), np.zeros((1, 1)), ~np.zeros(1, np.uint64)).origins_K[0]
        == np.inf
    )


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
def test_rows_with_impossible_values_are_refused(
    make: Callable[[], pa.Table], problem: str
) -> None:
    with pytest.raises(ShardError, match=f"^shard: {problem}. Run: ontogeny verify"):
        collect_job("count").map_shard(TableRows(make(), "shard"))


def test_a_job_stops_at_a_missing_shard_and_names_it() -> None:
    store = copied(tiny_run(), "memory://job-missing")
    store.delete("outliers/segment-000002-w00.parquet")
    run = open_run(store.uri)
    job = CountRows(RowReader(run.layout, run.num_datums, 8))
    with pytest.raises(ShardError, match=r"segment-000002-w00\.parquet: is missing"):
        run_job(job, run.shards("outliers"))


def test_a_run_without_segments_is_refused() -> None:
    store = copied(tiny_run(), "memory://job-empty")
    for key in store.keys("segments"):
        if "segment-" in key:
            store.delete(key)
    with pytest.raises(RunError, match="holds no committed segment yet"):
        open_run(store.uri).require_shards("outliers")
