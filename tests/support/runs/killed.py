"""Captures that are killed. They are forked from a server process that has imported everything.

A test sends requests to the server through ``CaptureServer``, one a line. The server is a process
with one thread. For each request it forks a child, which starts or resumes a capture and is killed:
by itself around its n-th operation on the store, or by the server some time after it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from checkout import IMPORT_PATH
from tiny import make_run, tiny_config

from capture.device import deterministic
from capture.store import Store, lease, s3  # noqa: F401  (so that no child imports botocore)
from capture.store.local import LocalBackend

VERBS = ("put", "put_if_absent", "get", "open", "exists", "keys", "delete")


@dataclass(frozen=True)
class KillPoint:
    """When a capture is killed: around its n-th operation on the store, counted from 1."""

    operation: int = 0
    """0: the capture is not killed."""
    moment: Literal["before", "within", "after", "later"] = "before"
    """within: after half of the bytes are written to a file; on an object store: before.
    later: ``seconds`` after the operation began, by the server."""
    seconds: float = 0.0
    """Delay of the kill, for the moment "later"."""


NO_KILL = KillPoint()
NOW = "now\n"


@dataclass(frozen=True)
class Request:
    folder: str
    overrides: list[str]
    environment: dict[str, str]
    kill: KillPoint


@dataclass(frozen=True)
class Ending:
    """How a capture ended: the signal that killed it, or 0 if it finished."""

    signal: int
    seconds: float


class CaptureServer:
    """The test's side: sends requests and reads answers."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def capture(
        self, folder: Path, *overrides: str, environment: dict[str, str], kill: KillPoint
    ) -> Ending:
        """Start or resume the tiny run; returns when it has finished or was killed."""
        request = Request(str(folder), list(overrides), environment, kill)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(request)) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return Ending(**answer)


@contextmanager
def capture_server() -> Iterator[CaptureServer]:
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": IMPORT_PATH, "OMP_NUM_THREADS": "1"},
    )
    with process:
        yield CaptureServer(process)
        assert process.stdin is not None
        process.stdin.close()


def random_kill(rng: random.Random, operations: int) -> KillPoint:
    """Draw a kill among so many operations; half of them at a random time after the operation."""
    operation = rng.randint(1, operations)
    if rng.random() < 0.5:
        return KillPoint(operation, "later", rng.uniform(0, 0.05))
    moments: list[Literal["before", "within", "after"]] = ["before", "within", "after"]
    return KillPoint(operation, rng.choice(moments))


# --- the server -----------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests until the test closes the pipe."""
    torch.set_num_threads(1)
    with deterministic():
        pass  # on first use torch imports many modules; do it before forking
    for line in sys.stdin:
        values: dict[str, Any] = json.loads(line)
        values["kill"] = KillPoint(**values["kill"])
        request = Request(**values)
        print(json.dumps(run_request(request)), flush=True)


def run_request(request: Request) -> dict[str, Any]:
    began = time.monotonic()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        capture_in_child(request, write)
    os.close(write)
    with os.fdopen(read) as output:
        error = output.readline()
        if error == NOW:
            time.sleep(request.kill.seconds)
            os.kill(child, signal.SIGKILL)
            error = ""
        error += output.read()
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - began
    if os.WIFSIGNALED(status):
        return asdict(Ending(os.WTERMSIG(status), seconds))
    return {"error": error} if error else asdict(Ending(0, seconds))


def capture_in_child(request: Request, write: int) -> None:
    """Run the capture in the forked child; does not return."""
    try:
        os.environ.update(request.environment)
        lease.SETTLE_SECONDS = 0.0
        if request.kill.operation:
            kill_at(request.kill, write)
        make_run(tiny_config(Path(request.folder), *request.overrides), resume=True)
    except BaseException:
        os.write(write, traceback.format_exc()[-4000:].encode())
    os._exit(0)


def kill_at(kill: KillPoint, write: int) -> None:
    """Count the operations of all stores of this process, and kill it at the given one."""
    operations = 0

    def counted(verb: str, carry_out: Callable[..., Any], store: Store, *arguments: Any) -> Any:
        nonlocal operations
        operations += 1
        kill_now = operations == kill.operation
        if kill_now and kill.moment == "later":
            os.write(write, NOW.encode())
            kill_now = False
        if kill_now and kill.moment == "within" and verb == "put":
            put_half(store, *arguments)
        if kill_now and kill.moment != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        result = carry_out(store, *arguments)
        if kill_now:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    for verb in VERBS:
        wrapped = partial(counted, verb, getattr(Store, verb))
        setattr(Store, verb, lambda *arguments, wrapped=wrapped: wrapped(*arguments))


def put_half(store: Store, key: str, data: bytes | memoryview) -> None:
    """Leave the file that an interrupted write leaves in a folder."""
    if isinstance(store.backend, LocalBackend):
        path = store.backend.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.half").write_bytes(bytes(data)[: len(data) // 2])


if __name__ == "__main__":
    serve()
