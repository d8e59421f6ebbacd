"""A full disk or an unreachable store pauses or stops the capture, which can be resumed."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from checkout import IMPORT_PATH
from s3_server import BUCKET, Server, environment, serving
from tiny import contents, make_run, tiny_config

from analysis.run.run import open_run
from capture.config.settings import Config
from capture.errors import StoreAwayError, StoreError
from capture.format.chain import read_segments
from capture.maintenance.verify import verify
from capture.store import Store, lease
from capture.store import local as folder
from capture.training import write_queue
from capture.training.loop import Event, Progress, capture_run
from capture.training.write_queue import WriteDelay

HURRIED = ("store.retries=0", "store.connect_timeout_seconds=2", "store.read_timeout_seconds=2")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_queue, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(write_queue, "REPORT_SECONDS", 0.01)
    for name in ("SETTLE_SECONDS", "REMOVAL_WAIT_SECONDS"):
        monkeypatch.setattr(lease, name, 0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    config = tiny_config(tmp_path_factory.mktemp("whole"))
    make_run(config)
    return contents(config.run.uri)


def readable_steps(config: Config) -> int:
    """Return the number of committed steps; checks that all their rows can be read."""
    run = open_run(config.run.uri, config.store)
    assert len(run.shifts()) == run.steps_done * 4 * 30
    assert all(finding.state != "damaged" for finding in verify(run.store))
    assert run.store.unfinished() == []
    return run.steps_done


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "victim", ["steps/segment-000002", "segments/segment-000001", "step-000016"]
)
def test_a_full_disk_stops_the_capture_with_one_message(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    config = tiny_config(tmp_path)
    flush = os.fsync
    writing: list[Path] = []
    beside = folder.temporary_beside

    def full(handle: int) -> None:
        if victim in str(writing[-1]):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    def noted(path: Path, data: bytes | memoryview):
        writing.append(path)
        return beside(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(folder, "temporary_beside", noted)
        patched.setattr("capture.store.local.os.fsync", full)
        with pytest.raises(StoreError, match="No space left on device") as raised:
            make_run(config)
    text = str(raised.value)
    assert victim in text
    assert text.endswith("Make room, then go on with --resume; what was committed is safe.")
    assert readable_steps(config) in (0, 8, 16)
    make_run(config, resume=True)
    assert contents(config.run.uri) == whole


FILL = """
import sys
from pathlib import Path
from subprocess import run
from capture.errors import StoreError
from capture.format.chain import read_segments
from capture.store import Store
from tiny import contents, make_run, tiny_config

folder = Path(sys.argv[1])
config = tiny_config(folder, f"run.uri={folder}/disk/run")
try:
    make_run(config)
    sys.exit("the disk was large enough")
except StoreError as error:
    print(error)
store = Store(config.run.uri)
print(len(read_segments(store)), store.unfinished(), sep="\\n")
run(["mount", "-o", "remount,size=10m", str(folder / "disk")], check=True)
make_run(config, resume=True)
make_run(tiny_config(folder, name="whole"))
print(contents(config.run.uri) == contents(str(folder / "whole")))
"""


def test_a_file_system_without_space_left(tmp_path: Path) -> None:
    """Uses a small file system in its own mount namespace, which needs no privileges."""
    (tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size=160k none {tmp_path}/disk"
    unshared = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshared, mount], check=False).returncode:
        pytest.skip("needs user namespaces: unshare --user --map-root-user --mount")
    command = f"{mount} && exec {sys.executable} -c '{FILL}' {tmp_path}"
    done = subprocess.run(
        [*unshared, command],
        env=os.environ | {"PYTHONPATH": IMPORT_PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    message, committed, unfinished, same = done.stdout.splitlines()
    assert "[Errno 28] No space left on device" in message
    assert message.endswith("Make room, then go on with --resume; what was committed is safe.")
    assert (int(committed) < 4, unfinished, same) == (True, "[]", "True")


def test_training_waits_for_a_network_folder_that_does_not_answer(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    put, failures = folder.write_file, iter(range(3))

    def away(path: Path, data: bytes | memoryview) -> None:
        if "segment-000001" in path.name and next(failures, None) is not None:
            raise OSError(errno.ESTALE, "Stale file handle")
        put(path, data)

    monkeypatch.setattr(folder, "write_file", away)
    make_run(config)
    assert contents(config.run.uri) == whole
    assert next(failures, None) is None


# --- an unreachable server ------------------------------------------------------------------------


class Outage:
    """An S3 server that can be stopped and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running = ExitStack()
        self.server: Server | None = None
        self.start()

    def start(self) -> None:
        port = self.server.port if self.server else 0
        self.server = self.running.enter_context(serving(self.folder, port))

    def stop(self) -> None:
        self.running.close()


@pytest.fixture
def outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = Outage(tmp_path / "s3")
    assert found.server is not None
    for name, value in environment(found.server.endpoint).items():
        monkeypatch.setenv(name, value)
    yield found
    found.stop()


def at_step(step: int, action: Callable[[], None]) -> Callable[[Event], None]:
    def report(event: Event) -> None:
        if isinstance(event, Progress) and event.steps_done == step:
            action()

    return report


@pytest.mark.s3
def test_training_pauses_while_the_store_is_away(
    whole: dict[str, bytes], tmp_path: Path, outage: Outage
) -> None:
    few = ("store.max_pending_bytes=1", "store.patience_seconds=100")
    config = tiny_config(tmp_path, f"run.uri=s3://{BUCKET}/run", *HURRIED, *few)
    delays: list[WriteDelay] = []
    """Reported since the last step."""
    stop = at_step(10, outage.stop)

    def report(event: Event) -> None:
        stop(event)
        if isinstance(event, Progress):
            delays.clear()
        elif isinstance(event, WriteDelay) and event.patience_seconds:
            delays.append(event)
            if len(delays) == 3:
                assert re.search("cannot be reached: |broke off: ", event.problem)
                outage.start()

    capture_run(config, report)
    assert contents(config.run.uri, config.store) == whole
    assert verify(Store(config.run.uri, config.store)) == []
    markers = read_segments(Store(config.run.uri, config.store))
    assert sum(marker.waited_seconds for marker in markers) > 0


@pytest.mark.s3
def test_a_store_that_stays_away_stops_the_capture_and_loses_nothing(
    whole: dict[str, bytes], tmp_path: Path, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, f"run.uri=s3://{BUCKET}/run", *HURRIED)
    alone = ("store.max_pending_bytes=1", "store.patience_seconds=0.1")
    brief = tiny_config(tmp_path, f"run.uri=s3://{BUCKET}/run", *HURRIED, *alone)
    with monkeypatch.context() as patched:
        patched.setattr(lease, "RELEASE_SECONDS", 0.01)
        with pytest.raises(StoreAwayError) as raised:
            capture_run(brief, at_step(18, outage.stop))  # the first segment of two is stored
    text = str(raised.value)
    assert "cannot be reached" in text
    assert text.endswith(
        "Wait until the store is back, then go on with --resume; what was committed is safe."
    )
    outage.start()
    assert readable_steps(config) in (8, 16)
    while Store(config.run.uri, config.store).exists(lease.KEY):
        time.sleep(0.01)  # it is removed as soon as the store is back
    make_run(config, resume=True)
    assert contents(config.run.uri, config.store) == whole
