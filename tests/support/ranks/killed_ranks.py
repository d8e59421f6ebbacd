"""Ranks that are killed while they record, and ranks that go on with their run."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from recorded_ranks import SETTINGS, STEPS, recorded, take_step
from torch import distributed
from torch.multiprocessing.spawn import spawn

from capture.process_group import DistributedGroup, Group
from capture.training.recorder import Recorder

SETTING = SETTINGS["adamw"]
KILLED_AT = 3
"""A step within the second segment of two steps."""


def on_mortal_workers(size: int, work: Callable[..., Any], *arguments: Any) -> list[int | None]:
    """Run ``work`` as ``spawned.run_worker`` does; return exit codes by rank, and stop nobody."""
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}):
        context: Any = spawn(run, (size, work, *arguments), nprocs=size, join=False)
    for process in context.processes:
        process.join(100)
    return [process.exitcode for process in context.processes]


def run(rank: int, size: int, work: Callable[..., Any], folder: Path, *more: Any) -> None:
    rendezvous = f"file://{folder}/{work.__name__}-{'-'.join(map(str, more))}"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    work(DistributedGroup(torch.device("cpu")), folder, *more)
    distributed.barrier()
    distributed.destroy_process_group()


def be_killed(group: Group, folder: Path, killed: int, moment: str) -> None:
    """Record until a rank is killed: in its loop, or while it stores what a step did."""

    def die(*_: object) -> None:
        if group.rank == killed:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        with recorded(SETTING, folder, "run", group) as (model, optimizer, recorder):
            for step in range(STEPS):
                if step == KILLED_AT:
                    if moment == "loop":
                        die()
                    elif group.rank == killed:
                        mock.patch.object(Recorder, "add_step", die).start()
                take_step(SETTING, model, optimizer, recorder, step, [group])
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        (folder / f"error-{group.rank}.txt").write_text(text)
    os._exit(0)


def go_on(group: Group, folder: Path) -> None:
    """Take all steps that are not committed yet."""
    with recorded(SETTING, folder, "run", group, resume=True) as (model, optimizer, recorder):
        recorder.restore()
        for step in range(recorder._last.end_step, STEPS):
            take_step(SETTING, model, optimizer, recorder, step, [group])
    (folder / f"went-on-{group.rank}.json").write_text(json.dumps(recorder._last.end_step))
