"""Captures that are killed: a process that is warm, so that a restart costs a fork and no imports.

A test holds the near end (``Mortals``) and sends one request a line; the far end, a process of its
own with one thread, forks a child for each, which captures or resumes and is killed: by itself
around its n-th operation on the store, or from outside at any time after it.
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
from capture.store import lease, s3  # noqa: F401  (so that no child needs to import botocore)
from capture.store.local import Folder
from capture.store.store import Store

VERBS = ("put", "put_if_absent", "get", "open", "exists", "keys", "delete")


@dataclass(frozen=True)
class Death:
    """When a capture dies: around its n-th operation on the store, counted from 1."""

    operation: int = 0
    """0: never."""
    moment: Literal["before", "within", "after", "later"] = "before"
    """within: half of the bytes are in a file; where that cannot be, before."""
    seconds: float = 0.0
    """How much later, for a death that comes from outside."""


NEVER = Death()
NOW = "now\n"


@dataclass(frozen=True)
class Request:
    folder: str
    overrides: list[str]
    environment: dict[str, str]
    death: Death


@dataclass(frozen=True)
class Ending:
    """How a capture ended: the signal that killed it, or 0 when it was done."""

    signal: int
    seconds: float


class Mortals:
    """The near end."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def capture(
        self, folder: Path, *overrides: str, environment: dict[str, str], death: Death
    ) -> Ending:
        """Capture the tiny run, or go on with it, until it is done or dies."""
        request = Request(str(folder), list(overrides), environment, death)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(request)) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return Ending(**answer)


@contextmanager
def mortals() -> Iterator[Mortals]:
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": IMPORT_PATH, "OMP_NUM_THREADS": "1"},
    )
    with process:
        yield Mortals(process)
        assert process.stdin is not None
        process.stdin.close()


def any_death(rng: random.Random, operations: int) -> Death:
    """Within so many operations, half of the time at a moment that no operation sets."""
    operation = rng.randint(1, operations)
    if rng.random() < 0.5:
        return Death(operation, "later", rng.uniform(0, 0.05))
    moments: list[Literal["before", "within", "after"]] = ["before", "within", "after"]
    return Death(operation, rng.choice(moments))


# --- the far end ----------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests until the near end closes."""
    torch.set_num_threads(1)
    with deterministic():
        pass  # torch imports half of itself here
    for line in sys.stdin:
        values: dict[str, Any] = json.loads(line)
        values["death"] = Death(**values["death"])
        request = Request(**values)
        print(json.dumps(carried_out(request)), flush=True)


def carried_out(request: Request) -> dict[str, Any]:
    began = time.monotonic()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        live(request, write)
    os.close(write)
    with os.fdopen(read) as told:
        error = told.readline()
        if error == NOW:
            time.sleep(request.death.seconds)
            os.kill(child, signal.SIGKILL)
            error = ""
        error += told.read()
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - began
    if os.WIFSIGNALED(status):
        return asdict(Ending(os.WTERMSIG(status), seconds))
    return {"error": error} if error else asdict(Ending(0, seconds))


def live(request: Request, write: int) -> None:
    """What the child does; it does not return."""
    try:
        os.environ.update(request.environment)
        lease.SETTLE_SECONDS = 0.0
        if request.death.operation:
            die_at(request.death, write)
        make_run(tiny_config(Path(request.folder), *request.overrides), resume=True)
    except BaseException:
        os.write(write, traceback.format_exc()[-4000:].encode())
    os._exit(0)


def die_at(death: Death, write: int) -> None:
    """Count the operations of all stores of this process, and kill it at one."""
    operations = 0

    def counted(verb: str, carry_out: Callable[..., Any], store: Store, *arguments: Any) -> Any:
        nonlocal operations
        operations += 1
        mine = operations == death.operation
        if mine and death.moment == "later":
            os.write(write, NOW.encode())
            mine = False
        if mine and death.moment == "within" and verb == "put":
            put_half(store, *arguments)
        if mine and death.moment != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        result = carry_out(store, *arguments)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    for verb in VERBS:
        wrapped = partial(counted, verb, getattr(Store, verb))
        setattr(Store, verb, lambda *arguments, wrapped=wrapped: wrapped(*arguments))


def put_half(store: Store, key: str, data: bytes | memoryview) -> None:
    """What a folder holds in the middle of a write."""
    if isinstance(store.place, Folder):
        path = store.place.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.half").write_bytes(bytes(data)[: len(data) // 2])


if __name__ == "__main__":
    serve()
