"""Results stay the same when a Ray cluster loses workers or nodes, is slow, fails or is stopped."""

import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

import ray
from ray.cluster_utils import Cluster
from ray_cluster import NODE
from ray_jobs import ActOnNames, JoinNames, act_on_name, shards_named

from capture.errors import ClusterError, ShardError
from cluster.local import threads as local
from cluster.on_ray import mapreduce, model_actors
from cluster.on_ray.mapreduce import RunningBlocks, run_job
from cluster.on_ray.model_actors import sweep
from cluster.on_ray.policy import MAX_LOSSES, max_tasks

pytestmark = pytest.mark.ray


# --- losses ---------------------------------------------------------------------------------------


def test_a_dead_worker_is_replaced(ray_nodes: Cluster, tmp_path: Path) -> None:
    shards = shards_named(tmp_path, ["a", "die", "b", "c", "d"])
    assert run_job(JoinNames(str(tmp_path)), shards) == "(((a die) (b c)) d)"
    assert (tmp_path / "died").exists()


def test_a_dead_actor_is_replaced_and_its_item_repeated(ray_nodes: Cluster, tmp_path: Path) -> None:
    items = ["a", "die", "device", "c"]
    assert [*sweep(ActOnNames(str(tmp_path)), items)] == ["A", "DIE", "cpu", "C"]
    assert (tmp_path / "died").exists()


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_named(ray_nodes: Cluster, tmp_path: Path) -> None:
    times = f"was lost with its worker, {MAX_LOSSES + 1} times: "
    with pytest.raises(ClusterError, match=f"outliers/die-always: {times}.*memory") as raised:
        run_job(JoinNames(str(tmp_path)), shards_named(tmp_path, ["a", "die-always"]))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_an_item_that_kills_every_actor_is_named(ray_nodes: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"^item 1: was lost .*, {MAX_LOSSES + 1} times: "):
        list(sweep(ActOnNames(str(tmp_path)), ["a", "die-always"]))


def test_an_error_of_a_shard_keeps_its_type_and_is_not_retried(
    ray_nodes: Cluster, tmp_path: Path
) -> None:
    shards = shards_named(tmp_path, ["a", "b", "bad", "c", "d", "e", "f", "g"])
    with pytest.raises(ShardError) as raised:
        run_job(JoinNames(str(tmp_path)), shards)
    assert type(raised.value) is ShardError
    assert raised.value.args == ("bad", "is bad", "Look at it")
    assert raised.value.exit_code == 3
    with pytest.raises(ShardError, match=r"^bad: is bad\. Look at it\.$"):
        list(sweep(ActOnNames(str(tmp_path)), ["a", "bad"]))


def test_the_cluster_works_after_an_error(ray_nodes: Cluster, tmp_path: Path) -> None:
    assert run_job(JoinNames(str(tmp_path)), shards_named(tmp_path, ["a", "b"])) == "(a b)"


@pytest.mark.slow
def test_a_dead_node_is_replaced(ray_nodes: Cluster, tmp_path: Path) -> None:
    """A running shard and the partials on the node are lost with it."""
    third = ray_nodes.add_node(**NODE)
    ray_nodes.wait_for_nodes()
    names = [*map(str, range(6)), "await", *map(str, range(6, 12))]
    shards = shards_named(tmp_path, names)

    def tell(done: int, total: int) -> None:
        if done == 12:
            ray_nodes.remove_node(third, allow_graceful=False)
            (tmp_path / "go").touch()

    job = JoinNames(str(tmp_path), partial_bytes=200_000)
    found = run_job(job, shards, tell)
    assert found == local.run_job(job, shards)


# --- stragglers and memory ------------------------------------------------------------------------


def test_one_slow_shard_blocks_no_other(ray_nodes: Cluster, tmp_path: Path) -> None:
    reported: list[int] = []
    others = max_tasks(2) - 1
    names = ["await", *map(str, range(others))]

    def tell(done: int, total: int) -> None:
        reported.append(done)
        if done == others:
            (tmp_path / "go").touch()

    found = run_job(JoinNames(str(tmp_path)), shards_named(tmp_path, names), tell)
    assert found.startswith("((((await 0)")
    assert reported[-1] == others + 1, "all others were done before the first one was let go"


def let_go(folder: Path, done: int) -> None:
    """Release the waiting item once ``done`` items were started."""
    while len(list(folder.glob("begun-*"))) < done:
        time.sleep(0.01)
    (folder / "go").touch()


@pytest.mark.slow
def test_one_slow_actor_blocks_no_other(ray_nodes: Cluster, tmp_path: Path) -> None:
    """The other actor computes all items that the lead allows; results stay in order."""
    items = ["await", *map(str, range(7))]
    results = sweep(ActOnNames(str(tmp_path)), items)
    done = threading.Thread(target=let_go, args=(tmp_path, 7))
    done.start()
    assert [*results] == ["AWAIT", *map(str, range(7))]
    done.join()


@pytest.mark.slow
def test_waiting_for_a_full_cluster_is_logged(
    ray_nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def warning(text: str) -> None:
        said.append(text)
        (tmp_path / "go").touch()

    monkeypatch.setattr(model_actors, "START_WARNING_SECONDS", 0.5)
    monkeypatch.setattr(model_actors.LOG, "warning", warning)
    others = [ray.remote(act_on_name).remote(str(tmp_path), "await") for _ in range(2)]
    while len(list(tmp_path.glob("awaiting-*"))) < len(others):
        time.sleep(0.01)
    assert [*sweep(ActOnNames(str(tmp_path)), ["a"])] == ["A"]
    assert len(said) == 1


@pytest.mark.parametrize("num_shards", [10, 100, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_driver_holds_no_partials(ray_nodes: Cluster, tmp_path: Path, num_shards: int) -> None:
    """Partials are a megabyte each; only the final one may come to the driver."""
    shards = shards_named(tmp_path, [str(i) for i in range(num_shards)])
    job = JoinNames(str(tmp_path), partial_bytes=10**6)
    run_job(job, shards[:3])  # so that Ray's imports are not counted
    tracemalloc.start()
    try:
        assert run_job(job, shards) == local.run_job(replace(job, partial_bytes=0), shards)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_500_000


@pytest.mark.parametrize("before", ["a", "ignore"])
def test_stopping_cancels_all_running_shards(
    ray_nodes: Cluster, tmp_path: Path, before: str
) -> None:
    """Also on workers that ignore SIGINT, as in a cluster that was started in the background."""
    run_job(JoinNames(str(tmp_path)), shards_named(tmp_path, [before] * 8))
    heard = [cancels_everything(tmp_path / str(number)) for number in range(6)]
    assert heard.count(True) >= 5, "Ray does not guarantee cancellation"
    assert run_job(JoinNames(str(tmp_path)), shards_named(tmp_path, ["c", "d"])) == "(c d)"


def cancels_everything(folder: Path) -> bool:
    """Stop a job; returns whether no task runs on soon afterwards, and releases those that do."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    let_all_go = threading.Timer(20, (folder / "go").touch)
    let_all_go.start()
    shards = shards_named(folder, ["a", "await", "await", "await", "b"])
    with pytest.raises(KeyboardInterrupt):
        run_job(JoinNames(str(folder)), shards, stop)
    let_all_go.cancel()
    deadline = time.monotonic() + 5
    while (going_on := list(folder.glob("awaiting-*"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    (folder / "go").touch()
    return not going_on


def test_a_task_that_misses_its_cancellation_is_cancelled_again(monkeypatch) -> None:
    """This happens to a task that its worker is just starting: one in four."""
    cancelled, running = [], iter([["b", "c"], ["c"], []])
    answers = SimpleNamespace(cancel=cancelled.append, wait=lambda left, **_: ([], next(running)))
    monkeypatch.setattr(mapreduce, "ray", answers)
    under_way = RunningBlocks([], None)
    under_way.blocks = dict.fromkeys("abc", "outliers/a")  # pyright: ignore[reportAttributeAccessIssue]
    under_way.cancel()
    assert "".join(cancelled) == "abcbcc"


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_actors_take_one_gpu_each_if_the_cluster_has_any(
    ray_nodes: Cluster, tmp_path: Path
) -> None:
    with_gpu = ray_nodes.add_node(**NODE, num_gpus=1)
    ray_nodes.wait_for_nodes()
    assert [*sweep(ActOnNames(str(tmp_path)), ["device", "a"])] == ["cuda", "A"]
    ray_nodes.remove_node(with_gpu)
