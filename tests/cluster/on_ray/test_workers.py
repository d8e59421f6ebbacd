"""Workers of a Ray cluster record what one process records, whoever is killed on the way."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from checkout import ROOT
from ray.cluster_utils import Cluster
from ray_cluster import ray_cluster
from ray_jobs import ENVIRONMENT
from spawned import on_workers, shared_config
from tiny import contents, tiny_config

from capture.config.settings import Config, to_values
from capture.errors import AuditError, CaptureError, ClusterError, RunError
from capture.format.markers import segment_key
from capture.maintenance.verify import verify
from capture.process_group import Group
from capture.store import Store, lease
from capture.training.loop import Progress, capture_run
from cluster.cli import main
from cluster.on_ray import room
from cluster.on_ray.workers import capture_on_workers
from cluster.terminal.progress import DriverEvent, GroupRestart

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),  # in Ray itself
    pytest.mark.machines,
]
LONG = ("training.epochs=8", "workers.count=2")
"""112 steps in 14 segments: enough time to kill a worker."""


def config_of(folder: Path, name: str, *overrides: str) -> Config:
    return tiny_config(folder, *LONG, *overrides, name=name)


def undisturbed(group: Group, folder: Path) -> None:
    """Capture the long run with two workers without Ray."""
    config = shared_config(group, folder, *LONG, name="wanted")
    capture_run(config, lambda event: None, group=group, owner="wanted.1")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with ray_cluster(2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the long run when nobody is killed."""
    folder = tmp_path_factory.mktemp("wanted")
    on_workers(2, undisturbed, folder)
    return contents(str(folder / "wanted"))


# --- who may be killed ----------------------------------------------------------------------------


def processes() -> dict[int, tuple[int, str]]:
    """Parent and title of every process of this machine."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(path.name)] = (parent, (path / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue
    return found


def workers_of_ours() -> list[int]:
    """Ray Train's workers among the descendants of this process."""
    found = processes()

    def is_ours(pid: int) -> bool:
        while pid in found and pid != os.getpid():
            pid = found[pid][0]
        return pid == os.getpid()

    return [pid for pid, (_, title) in found.items() if "RayTrainWorker" in title and is_ours(pid)]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.05)


@contextmanager
def after_segment(store: Store, segment: int, act: Callable[[], None]) -> Iterator[None]:
    """Within this context, act once, as soon as the segment's marker exists."""

    def watch() -> None:
        wait_for(lambda: store.exists(segment_key(segment)), segment_key(segment))
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    thread.join(10)
    assert not thread.is_alive()


def kill_a_worker() -> None:
    os.kill(max(workers_of_ours()), signal.SIGKILL)


def same_and_sound(wanted: dict[str, bytes], config: Config) -> None:
    store = Store(config.run.uri)
    assert contents(config.run.uri) == wanted
    assert verify(store) == []
    assert not store.exists(lease.KEY)


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_worker_is_replaced_and_changes_no_byte(
    nodes: Cluster, wanted: dict[str, bytes], tmp_path: Path
):
    config, reports = config_of(tmp_path, "killed"), list[DriverEvent]()
    with after_segment(Store(config.run.uri), 1, kill_a_worker):
        capture_on_workers(config, reports.append)
    same_and_sound(wanted, config)
    assert [event for event in reports if isinstance(event, GroupRestart)] == [GroupRestart(1, 3)]
    assert [event.steps_done for event in reports if isinstance(event, Progress)][-1] == 112


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_capture_survives_the_loss_of_a_node(wanted: dict[str, bytes], tmp_path: Path):
    config = config_of(tmp_path, "node")
    with ray_cluster(3) as cluster:
        node = next(iter(cluster.worker_nodes))
        with after_segment(
            Store(config.run.uri), 1, lambda: cluster.remove_node(node, allow_graceful=False)
        ):
            capture_on_workers(config, lambda event: None)
    same_and_sound(wanted, config)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_lost_driver_and_the_run_can_be_resumed(
    nodes: Cluster, wanted: dict[str, bytes], tmp_path: Path, number: signal.Signals
):
    config = config_of(tmp_path, "lost")
    store = Store(config.run.uri)
    driver = capturing(config, str(nodes.address))
    wait_for(lambda: store.exists(segment_key(1)), segment_key(1))
    driver.send_signal(number)
    _, said = driver.communicate(timeout=60)
    if number == signal.SIGINT:
        assert driver.returncode == 130
        assert "Stopped. Committed segments are safe" in said
        assert "Traceback" not in said
        assert not store.exists(lease.KEY)
    wait_for(lambda: is_free(store), "end of the workers")
    assert not store.exists(segment_key(13)), "was done before it was stopped"
    capture_on_workers(config, lambda event: None, resume=True)
    same_and_sound(wanted, config)


def capturing(config: Config, address: str) -> "subprocess.Popen[str]":
    """Start the command in its own process."""
    file = Path(config.run.uri).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(to_values(config)))
    return subprocess.Popen(
        [sys.executable, "-m", "cluster", "capture", str(file)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | {"RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_free(store: Store) -> bool:
    try:
        lease.stale_lease(store)
    except RunError:
        return False
    return True


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_error_of_a_worker_reaches_the_user_as_one_line(
    nodes: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = config_of(tmp_path, "refused", "training.learning_rate=1e30")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(to_values(config)))
    assert main(["capture", str(file), "--quiet"]) == AuditError.exit_code
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert re.match(r"ontogeny: step \d+: training has diverged .* was stored\.$", error)
    assert not Store(config.run.uri).exists(lease.KEY)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_capture_does_not_depend_on_the_driver_s_working_directory(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "job"
    folder.mkdir()
    config = tiny_config(tmp_path, "workers.count=2")
    monkeypatch.chdir(folder)
    folder.rmdir()
    capture_on_workers(config, lambda event: None)
    assert verify(Store(config.run.uri)) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_that_are_lost_too_often_end_the_capture(nodes: Cluster, tmp_path: Path):
    config = config_of(tmp_path, "often", "workers.max_failures=0")
    with (
        after_segment(Store(config.run.uri), 0, kill_a_worker),
        pytest.raises(
            ClusterError, match=r"^workers: were lost, last worker \d: .*go on with --resume"
        ),
    ):
        capture_on_workers(config, lambda event: None)
    assert is_free(Store(config.run.uri))


# --- refused at once ------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow  # by default test_room and test_workers_rules refuse the same without a cluster
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["workers.count=4"], r"got 4 with 1 core each, the cluster has 2 cores and 0 GPUs"),
        (["workers.cpus=2"], r"got 2 with 2 cores each, the cluster has 2 cores and 0 GPUs"),
        (["training.device=cuda"], r"got 2 with a GPU each \(training.device = cuda\), .* 0 GPUs"),
        (["run.uri=memory://x"], r"memory://x: lies in the memory of one process.* s3://"),
    ],
)
def test_impossible_requests_are_refused_before_workers_start(
    nodes: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    message: str,
):
    monkeypatch.setattr(room, "WAIT_SECONDS", 0.0)
    with pytest.raises(CaptureError, match=message):
        capture_on_workers(config_of(tmp_path, "run", *overrides), lambda event: None)
    assert workers_of_ours() == []
    assert not (tmp_path / "run").exists()
