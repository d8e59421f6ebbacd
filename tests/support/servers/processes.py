"""Processes that a test starts. If native code crashes in one, the test's error shows its stacks.

The processes leave without Python's finalization: threads of gloo outlive ``destroy_process_group``
where ``DistributedDataParallel`` was used, and have crashed processes that were ending
(github.com/pytorch/pytorch/pull/179291).
"""

import faulthandler
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import ProcessExitedException, spawn

MOST_CHARACTERS = 20_000
"""Length at which the stacks of a process are cut."""


class CrashError(Exception):
    """A process ended by a signal, or with an exit code and no exception."""


def run_processes(size: int, work: Callable[..., None], arguments: tuple, folder: Path) -> None:
    """Call ``work(rank, *arguments)`` in so many processes; ``work`` must be importable.

    Raises ``CrashError`` with the Python stacks of all threads, which the processes write to
    ``folder``, and torch's error if ``work`` raises.
    """
    try:
        spawn(with_stacks, (work, arguments, folder), nprocs=size)
    except ProcessExitedException as error:
        raise CrashError(f"{error}\n{stacks(size, folder)}") from None


def with_stacks(rank: int, work: Callable[..., None], arguments: tuple, folder: Path) -> None:
    with stack_file(rank, folder).open("w") as file:
        faulthandler.enable(file)
        try:
            work(rank, *arguments)
        finally:
            faulthandler.disable()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def stack_file(rank: int, folder: Path) -> Path:
    return folder / f"stacks-{rank}.txt"


def stacks(size: int, folder: Path) -> str:
    """Return what crashed processes have written."""
    found = {rank: text_of(stack_file(rank, folder)) for rank in range(size)}
    return "\n".join(f"process {rank}: {text[:MOST_CHARACTERS]}" for rank, text in found.items())


def text_of(path: Path) -> str:
    return (path.read_text() if path.exists() else "") or "no stacks"


def crash(rank: int, crashing: int) -> Any:
    """Read memory that does not exist, in one process."""
    if rank == crashing:
        faulthandler._sigsegv()  # pyright: ignore
