"""Jobs for a Ray cluster whose shard names say what the worker does, such as to die."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from checkout import IMPORT_PATH

from analysis.jobs.job import Rows
from analysis.run.scan import Shard
from capture.errors import ShardError
from capture.format.markers import START, File
from capture.store import Store

ENVIRONMENT = {
    "PYTHONPATH": IMPORT_PATH,  # where the test jobs are
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",  # otherwise Ray leaves a token in the home folder
    "RAY_DEDUP_LOGS": "0",
}
"""Environment of drivers and nodes."""


def shards_named(folder: Path, names: list[str]) -> list[Shard]:
    """Return shards of one row each with these names, without files."""
    store = Store(str(folder))
    store.put(START, b"")
    return [Shard(store, File(f"outliers/{name}", "outliers", 1, 1, ""), 0, 1) for name in names]


def first_time(folder: str, what: str) -> bool:
    """Return whether this is the first call with these arguments, over all processes."""
    try:
        os.close(os.open(Path(folder) / what, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def act_on_name(folder: str, name: str) -> None:
    """Do what the name says.

    die: end the process, the first time only; die-always; bad: raise ``ShardError``; ignore:
    ignore SIGINT; await: wait for the file ``go``; any other name: nothing.
    """
    first_time(folder, f"begun-{name}")
    if (name == "die" and first_time(folder, "died")) or name == "die-always":
        os._exit(1)
    if name == "bad":
        raise ShardError(name, "is bad", "Look at it")
    if name == "ignore":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if name == "await":
        first_time(folder, "awaited")
        awaiting = Path(folder) / f"awaiting-{os.getpid()}"
        awaiting.touch()
        try:
            while not (Path(folder) / "go").exists():
                time.sleep(0.01)
        finally:
            awaiting.unlink()


NamedPartial = tuple[str, bytes]
"""Joined names, and a payload. Bytes, unlike arrays, are copied when they are fetched."""


@dataclass(frozen=True)
class JoinNames:
    """A job that joins shard names in the order of merging; partials can be made large."""

    folder: str
    partial_bytes: int = 0

    def map_shard(self, shard: Rows) -> NamedPartial:
        name = shard.where.rpartition("/")[2]
        act_on_name(self.folder, name)
        return name, bytes(self.partial_bytes)

    def merge(self, a: NamedPartial, b: NamedPartial) -> NamedPartial:
        return f"({a[0]} {b[0]})", a[1]

    def finish(self, partial: NamedPartial) -> str:
        return partial[0]


@dataclass(frozen=True)
class ActOnNames:
    """A sweep function that does what each item says, see ``act_on_name``."""

    folder: str
    device: str = ""

    def to(self, device: str) -> "ActOnNames":
        return ActOnNames(self.folder, device)

    def __call__(self, item: str, /) -> str:
        act_on_name(self.folder, item)
        return self.device if item == "device" else item.upper()
