"""Jobs and work on a Ray cluster of two nodes: the answers of one machine, whatever is lost."""

import random
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

pytest.importorskip("ray", reason="needs the extra cluster")

from ray.cluster_utils import Cluster

from analysis.ablation import ablate
from analysis.ablation_choice import AblationConfig
from analysis.activation_choice import ActivationConfig
from analysis.activation_tables import activations
from analysis.attribution import attribute, write_attribution
from analysis.attribution_config import AttributionConfig
from analysis.evidence import Reading, Weight
from analysis.run import Run, open_run
from analysis.samples import CountRows
from analysis.sweep import in_turn
from capture.errors import ClusterError, ShardError, StoreError
from capture.markers import File
from capture.schema import OUTLIERS
from capture.shards import encode
from capture.store import Store
from cluster import local, mapreduce
from cluster.cli import main
from cluster.holders import sweep
from cluster.mapreduce import run_job
from cluster.policy import MAX_LOSSES
from ray_cluster import NODE, ray_cluster
from ray_jobs import Doing, Names, shards_named
from tiny_run import copied, tiny_run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with ray_cluster(2) as found:
        yield found


@pytest.fixture(scope="module")
def run(nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """On a folder, attributed."""
    store = copied(tiny_run(), str(tmp_path_factory.mktemp("run")))
    found = open_run(store.uri)
    write_attribution(found, attribute(found, local.run_job, AttributionConfig()))
    return open_run(store.uri)


def tables(found: object) -> dict[str, pd.DataFrame]:
    return {name: it for name, it in vars(found).items() if isinstance(it, pd.DataFrame)}


# --- the same answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ["count", "effect"])
def test_attribution_is_the_same_to_the_last_bit(run: Run, weight: Weight) -> None:
    config = AttributionConfig(evidence="target", weight=weight)
    here, there = (attribute(run, runner, config) for runner in (local.run_job, run_job))
    assert len(here.tokens) > 0
    for name, table in tables(here).items():
        pd.testing.assert_frame_equal(table, tables(there)[name], check_exact=True)


def test_ablation_is_the_same(run: Run) -> None:
    config = AblationConfig(max_neurons=6, max_datums=40, scored_datums=10)
    here, there = (ablate(run, config, sweep=way) for way in (in_turn, sweep))
    assert len(here.flips) > 0
    assert_alike(tables(here), tables(there))
    assert there.certified == here.certified


def test_activations_are_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.activations.DATUMS_AT_ONCE", 7)
    told: list[tuple[int, int]] = []
    here = activations(run, ActivationConfig())
    there = activations(run, ActivationConfig(), lambda *done: told.append(done), sweep)
    assert_alike(tables(here), tables(there))
    assert [done for done, _ in told[:8]] == [7, 14, 21, 28, 35, 42, 49, 51]


def counting_of(run: Run) -> CountRows:
    return CountRows(Reading(run.layout, run.num_datums, run.token_NT.shape[1]))


def assert_alike(here: dict[str, pd.DataFrame], there: dict[str, pd.DataFrame]) -> None:
    """Integers and text exactly, floats to the tolerance of float32."""
    for name, table in here.items():
        pd.testing.assert_frame_equal(table, there[name], rtol=2e-5, atol=1e-6)


def test_the_command_gives_the_same_tables(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*options: str) -> dict[str, bytes]:
        assert main(["attribute", run.uri, "--quiet", *options]) == 0
        keys = run.store.keys("analysis/attribute")
        return {key: run.store.get(key) for key in keys if key.endswith(".parquet")}

    here = made()
    reader = mock.Mock(side_effect=mapreduce.run_job)
    monkeypatch.setattr(mapreduce, "run_job", reader)
    assert made("--ray") == here
    assert reader.call_count > 0
    monkeypatch.setenv("RAY_ADDRESS", "where:6379")  # as in a job; the connection is there already
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
def test_the_merge_tree_is_the_local_one(nodes: Cluster, tmp_path: Path, num_shards: int) -> None:
    shards = shards_named(tmp_path, [str(i) for i in range(num_shards)])
    told: list[tuple[int, int]] = []
    found = run_job(Names(str(tmp_path)), shards, lambda *done: told.append(done))
    assert found == local.run_job(Names(str(tmp_path)), shards)
    assert told == [(i + 1, num_shards) for i in range(num_shards)]


# --- losses ---------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_made_good(nodes: Cluster, tmp_path: Path) -> None:
    shards = shards_named(tmp_path, ["a", "die", "b", "c", "d"])
    assert run_job(Names(str(tmp_path)), shards) == "(((a die) (b c)) d)"
    assert (tmp_path / "died").exists()


def test_an_actor_that_dies_is_replaced_and_its_item_done_again(
    nodes: Cluster, tmp_path: Path
) -> None:
    items = ["a", "die", "b", "c"]
    assert [*sweep(Doing(str(tmp_path)), items)] == ["A", "DIE", "B", "C"]
    assert (tmp_path / "died").exists()


def test_what_takes_its_worker_with_it_time_and_again_is_named(
    nodes: Cluster, tmp_path: Path
) -> None:
    times = f"was lost with its worker, {MAX_LOSSES + 1} times: "
    with pytest.raises(ClusterError, match=f"outliers/die-always: {times}.*memory") as raised:
        run_job(Names(str(tmp_path)), shards_named(tmp_path, ["a", "die-always"]))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_what_takes_its_actor_with_it_time_and_again_is_named(
    nodes: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match=f"^item 1: was lost .*, {MAX_LOSSES + 1} times: "):
        list(sweep(Doing(str(tmp_path)), ["a", "die-always"]))


def test_what_a_shard_raises_arrives_as_it_was_and_is_not_tried_again(
    nodes: Cluster, tmp_path: Path
) -> None:
    shards = shards_named(tmp_path, ["a", "b", "bad", "c", "d", "e", "f", "g"])
    with pytest.raises(ShardError) as raised:
        run_job(Names(str(tmp_path)), shards)
    assert type(raised.value) is ShardError
    assert raised.value.args == ("bad", "is bad", "Look at it")
    assert raised.value.exit_code == 3
    with pytest.raises(ShardError, match=r"^bad: is bad\. Look at it\.$"):
        list(sweep(Doing(str(tmp_path)), ["a", "bad"]))


def test_the_cluster_serves_on_after_an_error(nodes: Cluster, tmp_path: Path) -> None:
    assert run_job(Names(str(tmp_path)), shards_named(tmp_path, ["a", "b"])) == "(a b)"
    assert [*sweep(Doing(str(tmp_path)), ["a"])] == ["A"]


def test_a_node_that_dies_is_made_good(nodes: Cluster, tmp_path: Path) -> None:
    """It takes with it a shard under way and the partials that it held."""
    third = nodes.add_node(**NODE)
    nodes.wait_for_nodes()
    names = [*map(str, range(6)), "await", *map(str, range(6, 12))]
    shards = shards_named(tmp_path, names)

    def tell(done: int, total: int) -> None:
        if done == 12:
            nodes.remove_node(third, allow_graceful=False)
            (tmp_path / "go").touch()

    job = Names(str(tmp_path), partial_bytes=200_000)
    found = run_job(job, shards, tell)
    assert found == local.run_job(job, shards)


# --- stragglers and memory ------------------------------------------------------------------------


def test_one_slow_shard_holds_up_no_other(nodes: Cluster, tmp_path: Path) -> None:
    told: list[int] = []
    names = ["await", *map(str, range(20))]

    def tell(done: int, total: int) -> None:
        told.append(done)
        if done == 20:
            (tmp_path / "go").touch()

    found = run_job(Names(str(tmp_path)), shards_named(tmp_path, names), tell)
    assert found.startswith("(((((await 0)")
    assert told[-1] == 21, "twenty shards were done before the first one was let go"


def let_go(folder: Path, done: int) -> None:
    """Once so many items were begun."""
    while len(list(folder.glob("begun-*"))) < done:
        time.sleep(0.01)
    (folder / "go").touch()


def test_one_slow_actor_holds_up_no_other(nodes: Cluster, tmp_path: Path) -> None:
    """The other one makes all that the lead allows; the order stays."""
    items = ["await", *map(str, range(7))]
    results = sweep(Doing(str(tmp_path)), items)
    done = threading.Thread(target=let_go, args=(tmp_path, 7))
    done.start()
    assert [*results] == ["AWAIT", *map(str, range(7))]
    done.join()


def test_a_large_shard_is_read_in_pieces_and_stops_nothing(
    nodes: Cluster, run: Run, tmp_path: Path
) -> None:
    """Ten times the usual rows: the same counts as ten shards of the usual size."""
    shard = run.shards("outliers")[0]
    table = pa.concat_tables([shard.table(OUTLIERS.names)] * 10).unify_dictionaries()
    data = encode(table)
    run.store.put("outliers/large.parquet", data)
    file = File.of("outliers/large.parquet", "outliers", data, table.num_rows)
    large = replace(shard, file=file)
    found = run_job(counting_of(run), [large, *run.shards("outliers")])
    usual = local.run_job(counting_of(run), [shard] * 10 + run.shards("outliers"))
    assert np.array_equal(found, usual)


@pytest.mark.parametrize("num_shards", [10, 100, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_driver_holds_no_partials(nodes: Cluster, tmp_path: Path, num_shards: int) -> None:
    """A megabyte each; at most the one that the answer is made of comes to the driver."""
    shards = shards_named(tmp_path, [str(i) for i in range(num_shards)])
    job = Names(str(tmp_path), partial_bytes=10**6)
    tracemalloc.start()
    try:
        assert run_job(job, shards) == local.run_job(replace(job, partial_bytes=0), shards)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_500_000


# --- refusals and stopping ------------------------------------------------------------------------


def test_a_run_in_memory_is_refused(nodes: Cluster) -> None:
    found = open_run(tiny_run())
    with pytest.raises(StoreError, match=r"^memory://tiny-run: lies in the memory of one process"):
        run_job(counting_of(found), found.shards("outliers"))


def test_a_folder_that_a_node_cannot_see_is_refused(
    nodes: Cluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = replace(run.shards("outliers")[0], store=Store("/nowhere/run"))
    with pytest.raises(StoreError, match=r"^/nowhere/run: cannot be seen from .*s3://\.$"):
        run_job(counting_of(run), [away])


def test_a_relative_folder_is_found_from_anywhere(
    nodes: Cluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(run.uri)
    monkeypatch.chdir(folder.parent)
    near = open_run(folder.name)
    found = run_job(counting_of(near), near.shards("outliers"))
    assert np.array_equal(found, local.run_job(counting_of(run), run.shards("outliers")))


def test_stopping_leaves_no_shard_under_way(nodes: Cluster, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    names = ["a", "await", "await", "await", "b"]
    with pytest.raises(KeyboardInterrupt):
        run_job(Names(str(tmp_path)), shards_named(tmp_path, names), stop)
    assert run_job(Names(str(tmp_path)), shards_named(tmp_path, ["c", "d"])) == "(c d)"
    assert not (tmp_path / "go").exists()
