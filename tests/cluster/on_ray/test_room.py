"""Room on a cluster: what its nodes offer, and the bounded wait for nodes that may still join."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from ray.cluster_utils import Cluster
from ray_cluster import NODE, ray_cluster
from tiny import tiny_config

from capture.config.reading import make_config
from capture.errors import CaptureError, ClusterError, ConfigError
from capture.maintenance.verify import verify
from capture.store import Store
from cluster.on_ray import room
from cluster.on_ray.policy import JoiningNodes
from cluster.on_ray.room import require_room, wait_for_cores, wait_for_workers_room
from cluster.terminal.progress import EventLines, NodeWait

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")  # in Ray itself
FOUR = make_config({}, ["workers.count=4", "workers.cpus=2", "training.device=cpu"])


class GrowingCluster:
    """A cluster without Ray: a node joins now and then, on a clock that sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, joins: list[float]) -> None:
        """``joins``: when each node of two cores joins, in seconds."""
        self.now = 0.0
        self.joins = joins
        self.asked: list[list[dict[str, float]]] = []
        monkeypatch.setattr(room, "nodes_with_cores", self.nodes)
        monkeypatch.setattr(
            room, "request_resources", lambda *, bundles: self.asked.append(bundles)
        )
        monkeypatch.setattr(room, "is_started_here", lambda: False)
        monkeypatch.setattr("cluster.on_ray.room.time.monotonic", lambda: self.now)
        monkeypatch.setattr("cluster.on_ray.room.time.sleep", self.sleep)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Resources": {"CPU": 2.0}} for joined in self.joins if joined <= self.now]

    def sleep(self, seconds: float) -> None:
        self.now += seconds


# --- waiting --------------------------------------------------------------------------------------


def test_the_wait_ends_some_time_after_the_last_node_joined() -> None:
    joining = JoiningNodes(300.0, started=1000.0)
    assert joining.seconds_left(0, 1100.0) == 200.0
    assert joining.seconds_left(1, 1200.0) == 300.0
    assert joining.seconds_left(1, 1400.0) == 100.0
    assert joining.seconds_left(0, 1500.0) == 0.0  # a node that is lost again is no growth
    assert joining.seconds_left(1, 1501.0) < 0


def test_a_head_without_workers_is_waited_for_and_the_autoscaler_is_asked(monkeypatch) -> None:
    cluster = GrowingCluster(monkeypatch, [200.0, 450.0, 450.0, 451.0])
    said: list[Any] = []
    assert wait_for_workers_room(FOUR, said.append) is False
    assert cluster.now == 451.0
    assert cluster.asked == [[{"CPU": 2}] * 4, []]
    assert said[0] == NodeWait(
        "got 4 with 2 cores each, the cluster has 0 cores and 0 GPUs, room for 0", 0.0, 300.0
    )
    assert said[-1].problem.endswith("has 6 cores and 0 GPUs, room for 3")


def test_a_cluster_that_does_not_grow_is_refused_at_the_end(monkeypatch) -> None:
    cluster = GrowingCluster(monkeypatch, [100.0])
    with pytest.raises(ConfigError) as raised:
        wait_for_workers_room(FOUR, lambda event: None)
    assert str(raised.value) == (
        "workers.count: got 4 with 2 cores each, the cluster has 2 cores and 0 GPUs, room for 1; "
        "no node has joined for 300 s. Ask for fewer, or add nodes to the cluster."
    )
    assert cluster.now == 400.0
    assert cluster.asked[-1] == [], "the request would hold machines for ever"


def test_gpus_are_asked_for_where_they_are_needed(monkeypatch) -> None:
    cluster = GrowingCluster(monkeypatch, [])
    with pytest.raises(ConfigError, match="with a GPU each"):
        wait_for_workers_room(make_config({}, ["training.device=cuda"]), lambda event: None)
    assert cluster.asked[0] == [{"CPU": 1, "GPU": 1}]


def test_a_cluster_that_this_process_started_is_not_waited_for(monkeypatch) -> None:
    cluster = GrowingCluster(monkeypatch, [])
    monkeypatch.setattr(room, "is_started_here", lambda: True)
    with pytest.raises(ConfigError, match=r"room for 0\. Ask for fewer"):
        wait_for_workers_room(FOUR, lambda event: pytest.fail("waits"))
    assert (cluster.now, cluster.asked) == (0.0, [])


def test_nothing_is_asked_or_said_where_there_is_room(monkeypatch) -> None:
    cluster = GrowingCluster(monkeypatch, [0.0] * 4)
    wait_for_workers_room(FOUR, lambda event: pytest.fail("waits"))
    wait_for_cores()
    assert (cluster.now, cluster.asked) == (0.0, [])


def test_analyses_wait_for_a_core_and_say_so(monkeypatch, caplog) -> None:
    cluster = GrowingCluster(monkeypatch, [70.0])
    wait_for_cores()
    assert (cluster.now, cluster.asked) == (70.0, [[{"CPU": 1}], []])
    assert (
        caplog.messages
        == ["no node of the cluster has cores: waiting for nodes for up to 300 s"] * 3
    )
    cluster.joins = []
    with pytest.raises(ClusterError) as raised:
        wait_for_cores()
    assert str(raised.value) == (
        "Ray: no node of the cluster has cores; no node has joined for 300 s. Add nodes to it."
    )


def test_the_wait_is_said_now_and_then() -> None:
    lines = EventLines()
    first = lines.line(NodeWait("room for 0", 12.0, 300.0))
    assert first == (
        "waiting for nodes, 12 s so far, up to 300 s after the last one joined: room for 0"
    )
    assert lines.line(NodeWait("room for 0", 13.0, 300.0)) is None


# --- on Ray ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head_only() -> Iterator[Cluster]:
    """A cluster whose head runs no work."""
    with ray_cluster(1, head_cpus=0) as cluster:
        yield cluster


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.machines
@pytest.mark.timeout(300)
def test_capture_starts_when_the_workers_of_a_head_have_joined(
    head_only: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.on_ray.workers import capture_on_workers

    said: list[Any] = []
    config = tiny_config(tmp_path, "workers.count=2")
    monkeypatch.setattr(room, "WAIT_SECONDS", 2.0)
    with pytest.raises(CaptureError, match="room for 0; no node has joined for 2 s"):
        capture_on_workers(config, said.append)
    monkeypatch.setattr(room, "WAIT_SECONDS", 60.0)

    def report(event: Any) -> None:
        if isinstance(event, NodeWait) and len(head_only.worker_nodes) < 2:
            head_only.add_node(**NODE)
        said.append(event)

    capture_on_workers(config, report)
    assert verify(Store(config.run.uri)) == []


# --- what nodes offer -----------------------------------------------------------------------------


def test_gpus_are_used_if_every_worker_can_have_one():
    config = make_config({}, ["workers.count=4", "workers.cpus=3"])
    few, many = {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 2.0}
    assert require_room(config, [many, many])
    assert not require_room(config, [many, few])
    with pytest.raises(ConfigError, match=r"got 4 with 3 cores each, the cluster has 8 cores"):
        require_room(config, [many])


def test_a_worker_s_cores_and_gpu_must_be_on_one_node():
    nodes = [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 4.0}]
    assert not require_room(make_config({}, ["workers.count=4"]), nodes)
    assert require_room(make_config({}, ["workers.count=1"]), nodes)
    config = make_config({}, ["workers.count=4", "training.device=cuda"])
    message = r"got 4 with a GPU each .*, the cluster has 9 cores and 4 GPUs, room for 1\. Ask for"
    with pytest.raises(ConfigError, match=message):
        require_room(config, nodes)
