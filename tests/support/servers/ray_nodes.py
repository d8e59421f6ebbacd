"""A Ray cluster as users start one: ``ray start`` per node, with a dashboard and a token.

Every process of a node has the node's mark in its environment. Only processes with the mark are
ended. ``ray stop`` would also end other clusters on this machine.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from s3_server import free_port

MARK = "ONTOGENY_TEST_NODE"
MEGABYTES = 100
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Nodes:
    """A head node and the nodes that joined it; all are started with ``environment``."""

    environment: dict[str, str]
    folder: str
    name: str
    port: int
    dashboard: int
    started: list[str] = field(default_factory=list)
    """Marks of the nodes, the head's first."""

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self, *, cpus: int) -> str:
        """Start another node (the first is the head) and return its mark."""
        mark = f"{self.name}-{len(self.started)}"
        ports = ["--dashboard-agent-listen-port", "--dashboard-agent-grpc-port"]
        words = [f"{name}={free_port()}" for name in (*ports, "--runtime-env-agent-port")]
        words += [f"--num-cpus={cpus}", f"--object-store-memory={MEGABYTES * 2**20}"]
        words += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        # One folder per node, as on separate machines: nodes delete files that their jobs no longer
        # need.
        words += [f"--temp-dir={self.folder}/{len(self.started)}"]
        if self.started:
            words += [f"--address=127.0.0.1:{self.port}"]
        else:
            words += ["--head", f"--port={self.port}"]
            words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
            words += [f"--ray-client-server-port={free_port()}"]
        self.started.append(mark)
        ray("start", *words, environment=self.environment | {MARK: mark})
        return mark

    def kill(self, mark: str) -> None:
        """Kill all processes of a node, like a power cut."""
        kill_processes(processes(mark))

    def workers(self) -> dict[int, str]:
        """Return process id → node mark of the processes that capture."""
        return {
            pid: mark
            for mark in self.started
            for pid, name in processes(mark).items()
            if re.match("ray::.*TrainWorker", name)
        }

    def submit(self, *words: str, folder: Path) -> subprocess.Popen[str]:
        """Start ``ray job submit`` with an ontogeny command; ``stdout`` has output and errors."""
        command = [ray_program(), "job", "submit", "--address", self.api, "--log-color", "false"]
        command += ["--working-dir", str(folder)]
        return subprocess.Popen(
            [*command, "--", "python", "-m", "cluster", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@contextmanager
def ray_nodes(cpus: Sequence[int], extra: Mapping[str, str]) -> Iterator[Nodes]:
    """Start one node per entry of ``cpus``, the head first, and end them after the block."""
    name = secrets.token_hex(8)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: socket paths are limited
    binaries = Path(sys.executable).parent
    environment = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "HOME": folder,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_COLOR_PREFIX": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    nodes = Nodes(environment | dict(extra), folder, name, free_port(), free_port())
    try:
        for count in cpus:
            nodes.start(cpus=count)
        yield nodes
    finally:
        for mark in nodes.started:
            nodes.kill(mark)
        shutil.rmtree(folder, ignore_errors=True)


def ray_program() -> str:
    return str(Path(sys.executable).with_name("ray"))


def ray(*words: str, environment: Mapping[str, str]) -> None:
    """Run a command of Ray; raises ``RuntimeError`` with its output if it fails."""
    done = subprocess.run([ray_program(), *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ray {' '.join(words)}\n{done.stdout}\n{done.stderr}")


def processes(mark: str) -> dict[int, str]:
    """Return process id → command line of all processes with this mark (Linux only)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}\0".encode() in (folder / "environ").read_bytes():
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = line.decode(errors="replace").strip()
    return found


def kill_processes(victims: Mapping[int, str]) -> None:
    """Kill the processes and wait until they have ended."""
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(alive(pid) for pid in victims):
        assert time.monotonic() < deadline, "processes do not end"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
