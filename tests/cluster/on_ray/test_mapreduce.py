"""Jobs and sweeps on a Ray cluster of two nodes give the results of one machine."""

import random
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from ray.cluster_utils import Cluster
from ray_jobs import JoinNames, shards_named
from tiny_run import copied, tiny_run

from analysis.ablation.ablate import ablate
from analysis.ablation.config import AblationConfig
from analysis.activations.config import ActivationConfig
from analysis.activations.tables import activations
from analysis.attribution.attribute import attribute, write_attribution
from analysis.attribution.collect import CountRows
from analysis.attribution.config import AttributionConfig
from analysis.attribution.outlier_weights import RowReader, Weight
from analysis.jobs.sweep import in_turn
from analysis.run.run import Run, open_run
from analysis.run.scan import Shard
from capture.errors import StoreError
from capture.format.markers import File
from capture.shards.encoding import encode
from capture.shards.schema import OUTLIERS
from capture.store import Store
from cluster.cli import main
from cluster.local import threads as local
from cluster.on_ray import mapreduce
from cluster.on_ray.mapreduce import run_job
from cluster.on_ray.model_actors import sweep

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def run(ray_nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in a folder, with the tables of attribute."""
    store = copied(tiny_run(), str(tmp_path_factory.mktemp("run")))
    found = open_run(store.uri)
    write_attribution(found, attribute(found, local.run_job, AttributionConfig()))
    return open_run(store.uri)


def tables(found: object) -> dict[str, pd.DataFrame]:
    return {name: it for name, it in vars(found).items() if isinstance(it, pd.DataFrame)}


# --- the same answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [pytest.param("count", marks=pytest.mark.slow), "effect"])
def test_attribution_is_the_same_to_the_last_bit(run: Run, weight: Weight) -> None:
    config = AttributionConfig(evidence="target", weight=weight)
    here, there = (attribute(run, runner, config) for runner in (local.run_job, run_job))
    assert len(here.tokens) > 0
    for name, table in tables(here).items():
        pd.testing.assert_frame_equal(table, tables(there)[name], check_exact=True)


@pytest.mark.slow
def test_ablation_is_the_same(run: Run) -> None:
    config = AblationConfig(max_neurons=6, max_datums=40, scored_datums=10)
    here, there = (ablate(run, config, sweep=sweep_of) for sweep_of in (in_turn, sweep))
    assert len(here.flips) > 0
    assert_alike(tables(here), tables(there))
    assert there.certified == here.certified


@pytest.mark.slow
def test_activations_are_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.activations.quantities.DATUMS_AT_ONCE", 7)
    reported: list[tuple[int, int]] = []
    here = activations(run, ActivationConfig())
    there = activations(run, ActivationConfig(), lambda *done: reported.append(done), sweep)
    assert_alike(tables(here), tables(there))
    assert [done for done, _ in reported[:8]] == [7, 14, 21, 28, 35, 42, 49, 51]


def counting_of(run: Run) -> CountRows:
    return CountRows(RowReader(run.layout, run.num_datums, run.token_NT.shape[1]))


def assert_alike(here: dict[str, pd.DataFrame], there: dict[str, pd.DataFrame]) -> None:
    """Compare integers and text exactly, floats to the tolerance of float32."""
    for name, table in here.items():
        pd.testing.assert_frame_equal(table, there[name], rtol=2e-5, atol=1e-6)


def test_the_command_gives_the_same_tables(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*options: str) -> dict[str, bytes]:
        assert main(["attribute", run.uri, "--quiet", "--replace", *options]) == 0
        keys = run.store.keys("analysis/attribute")
        return {key: run.store.get(key) for key in keys if key.endswith(".parquet")}

    here = made()
    reader = mock.Mock(side_effect=mapreduce.run_job)
    monkeypatch.setattr(mapreduce, "run_job", reader)
    assert made("--ray") == here
    assert reader.call_count > 0
    monkeypatch.setenv(
        "RAY_ADDRESS", "where:6379"
    )  # as in a job; this process is connected already
    assert made("--no-ray") == here
    before = reader.call_count
    assert made() == here
    assert reader.call_count > before


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_shards_gives_the_same(run: Run, seed: int) -> None:
    shards = run.shards("outliers")
    whole = run_job(counting_of(run), shards)
    random.Random(seed).shuffle(shards)
    assert np.array_equal(run_job(counting_of(run), shards), whole)


@pytest.mark.parametrize("num_shards", [1, 2, 7, 12])
def test_the_merge_tree_is_the_local_one(
    ray_nodes: Cluster, tmp_path: Path, num_shards: int
) -> None:
    shards = shards_named(tmp_path, [str(i) for i in range(num_shards)])
    reported: list[tuple[int, int]] = []
    found = run_job(JoinNames(str(tmp_path)), shards, lambda *done: reported.append(done))
    assert found == local.run_job(JoinNames(str(tmp_path)), shards)
    assert reported == [(i + 1, num_shards) for i in range(num_shards)]


def test_a_large_shard_counts_as_ten_of_the_usual_size(
    ray_nodes: Cluster, run: Run, tmp_path: Path
) -> None:
    """A shard of ten times the usual rows gives the counts of ten usual shards."""
    shard = run.shards("outliers")[0]
    table = pa.concat_tables([shard.table(OUTLIERS.names)] * 10).unify_dictionaries()
    data = encode(table)
    run.store.put("outliers/large.parquet", data)
    file = File.of("outliers/large.parquet", "outliers", data, table.num_rows)
    large = replace(shard, file=file)
    found = run_job(counting_of(run), [large, *run.shards("outliers")])
    usual = local.run_job(counting_of(run), [shard] * 10 + run.shards("outliers"))
    assert np.array_equal(found, usual)


def test_reading_a_shard_ten_times_as_large_takes_no_more_memory(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.run.scan.ROWS_PER_BATCH", 1000)
    rows = run.shards("outliers")[0].table(OUTLIERS.names)
    usual, large = (most_memory(repeated(run, rows, times)) for times in (10, 100))
    assert large < 1.2 * usual


def repeated(run: Run, rows: pa.Table, times: int) -> Shard:
    """A shard that repeats some rows, in row groups of a fixed size."""
    table = pa.concat_tables([rows] * times).unify_dictionaries()
    data = encode(table, rows_per_group=1000)
    key = f"outliers/times-{times}.parquet"
    run.store.put(key, data)
    file = File.of(key, "outliers", data, table.num_rows)
    return replace(run.shards("outliers")[0], file=file)


def most_memory(shard: Shard) -> int:
    """Peak of the memory that Arrow holds while a shard is read."""
    before, most = pa.total_allocated_bytes(), 0
    for batch in shard.batches(OUTLIERS.names):
        most = max(most, pa.total_allocated_bytes() - before)
        del batch
    return most


# --- refusals ------------------------------------------------------------------------


def test_a_run_in_memory_is_refused(ray_nodes: Cluster) -> None:
    found = open_run(tiny_run())
    with pytest.raises(StoreError, match=r"^memory://tiny-run: lies in the memory of one process"):
        run_job(counting_of(found), found.shards("outliers"))


def test_a_folder_that_a_node_cannot_see_is_refused(
    ray_nodes: Cluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = replace(run.shards("outliers")[0], store=Store("/nowhere/run"))
    with pytest.raises(StoreError, match=r"^/nowhere/run: cannot be seen from .*s3://\.$"):
        run_job(counting_of(run), [away])


def test_a_relative_folder_is_found_from_anywhere(
    ray_nodes: Cluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(run.uri)
    monkeypatch.chdir(folder.parent)
    near = open_run(folder.name)
    found = run_job(counting_of(near), near.shards("outliers"))
    assert np.array_equal(found, local.run_job(counting_of(run), run.shards("outliers")))
