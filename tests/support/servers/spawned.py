"""Groups of workers for tests: processes on this machine, connected by gloo, without Ray."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from processes import run_processes
from tiny import tiny_config
from torch import distributed as dist

from capture import process_group
from capture.config.settings import Config
from capture.engine.step_plan import PlannedStep
from capture.errors import AuditError
from capture.process_group import (
    DistributedGroup,
    Group,
    heartbeat,
    require_same,
    wait_for_first,
)
from capture.store import Store
from capture.training import loop
from capture.training.loop import Event, Progress, WindowReplay, capture_run

Work = Callable[[Group, Path], Any]
"""What each worker runs. Its result must be JSON."""


def on_workers(size: int, work: Work, folder: Path) -> list[Any]:
    """Run ``work`` on ``size`` workers; return the results by rank. ``work`` must be importable."""
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with mock.patch.dict(os.environ, environment):
        run_processes(size, run_worker, (size, work, folder), folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def run_worker(rank: int, size: int, work: Work, folder: Path) -> None:
    rendezvous = f"file://{folder}/rendezvous-{size}"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    value = work(DistributedGroup(torch.device("cpu")), folder)
    done = folder / f"{rank}.part"
    done.write_text(json.dumps(value))
    done.rename(folder / f"{rank}.json")
    # gloo may abort a worker that still uses the group when another has ended.
    while not all((folder / f"{other}.json").exists() for other in range(size)):
        time.sleep(0.01)


def exercise(group: Group, folder: Path) -> dict[str, Any]:
    """Call every group operation once, with values that depend on the rank."""
    rank = group.rank
    floats, numbers = torch.tensor([[1.5, rank]]), torch.tensor(10**12 + rank)
    group.all_reduce([floats, numbers, floats[:, :1]])
    joined = group.all_gather(torch.arange(2 * rank) + rank)
    other = group.for_other_thread()
    return {
        "floats": floats.tolist(),
        "numbers": numbers.item(),
        "joined": [x_M.tolist() for x_M in joined],
        "gathered": group.all_gather_object({"rank": rank, "text": "é" * rank}),
        "apart": [other.rank, other.size, other.all_gather_object(rank)],
        "same": weight_mismatch(group, 0.0),
        "other": weight_mismatch(group, 1e-7),
        "waited": work_longer_than_the_timeout(group),
    }


def work_longer_than_the_timeout(group: Group) -> bool:
    """Let the first worker work alone for longer than the workers may wait for one another."""
    made = dist.new_group(backend="gloo", timeout=timedelta(seconds=2))
    assert isinstance(made, dist.ProcessGroup)
    impatient, began = DistributedGroup(torch.device("cpu"), made), time.monotonic()
    if group.rank:
        wait_for_first(impatient)
    else:
        often = mock.patch.object(process_group, "HEARTBEAT_SECONDS", 0.5)
        with often, heartbeat(impatient) as alive:
            while time.monotonic() < began + 3:
                time.sleep(0.1)
                alive()
    return time.monotonic() > began + 2.5


def weight_mismatch(group: Group, difference: float) -> str:
    """Return the error message if one weight of the last worker differs by ``difference``."""
    weights = torch.ones(3)
    weights[1] += difference * (group.rank == group.size - 1)
    try:
        require_same(group, [torch.zeros(2, 2), weights], "step 7")
    except AuditError as error:
        return str(error)
    return ""


SETTINGS = {
    "datum": ("model.dropout=0.3", "capture.factors.enabled=true"),
    "step": ("capture.outliers.scope=step",),
    "last": ("capture.loss_positions=last", "capture.outliers.scope=unit", "capture.outliers.k=9"),
    "bare": ("capture.record=checkpoints",),
    "adamw": (
        "training.optimizer.kind=adamw",
        "training.optimizer.weight_decay=0.01",
        "training.learning_rate=0.003",
        'capture.units=["*weight"]',
    ),
    "rounded": ("training.precision=bfloat16", "capture.loss_positions=last"),
}


def shared_config(group: Group, folder: Path, *overrides: str, name: str) -> Config:
    """Return the config of a tiny run; on return every worker has written its text file."""
    config = tiny_config(folder, *overrides, f"workers.count={group.size}", name=name)
    group.all_gather_object("written")
    return config


def capture_all(group: Group, folder: Path) -> list[int]:
    """Capture one epoch with each of ``SETTINGS``; return the reported steps."""
    reports: list[Event] = []
    for name, overrides in SETTINGS.items():
        config = shared_config(group, folder, *overrides, "training.epochs=1", name=name)
        capture_run(config, reports.append, group=group, owner=f"{name}.1")
    return [event.steps_done for event in reports if isinstance(event, Progress)]


def capture_twice(group: Group, folder: Path) -> None:
    for name in ("first", "second"):
        config = shared_config(group, folder, "training.epochs=1", name=name)
        capture_run(config, lambda event: None, group=group, owner=f"{name}.1")


def capture_datum(group: Group, folder: Path) -> None:
    """Capture one epoch with every kind of record; the last segment is shorter."""
    config = shared_config(group, folder, *SETTINGS["datum"], "training.epochs=1", name="run")
    capture_run(config, lambda event: None, group=group, owner="g.1")


def resume_later(group: Group, folder: Path) -> list[str]:
    """Resume a run that one worker has begun; return the keys of its outliers."""
    config = shared_config(group, folder, name="resumed")
    capture_run(config, lambda event: None, resume=True, group=group, owner="g.2")
    return Store(config.run.uri).keys("outliers")


WINDOWS = ("capture.tally.window_steps=6", "capture.segment_steps=4", "training.epochs=1")


class Stopped(Exception):
    """Stops all workers at the same step."""


def everything(group: Group, folder: Path) -> dict[str, Any]:
    """Do all that two workers are tested for, because starting processes takes seconds."""
    return {
        "operations": exercise(group, folder),
        "steps": capture_all(group, folder),
        "steps taken again": stop_and_resume(group, folder),
    }


def stop_and_resume(group: Group, folder: Path) -> int:
    """Capture a run to its end, and another one that stops within a tally window and is resumed.

    Returns how many steps the resumed one took again, as this worker reports it.
    """
    whole = shared_config(group, folder, *WINDOWS, name="whole")
    capture_run(whole, lambda event: None, group=group, owner="whole.1")
    config = shared_config(group, folder, *WINDOWS, name="stopped")
    record = loop.record_step

    def stop(observer: Any, planned: PlannedStep, recorder: Any) -> object:
        if planned.step == 9:
            recorder.flush()
            raise Stopped
        return record(observer, planned, recorder)

    with mock.patch.object(loop, "record_step", stop), suppress(Stopped):
        capture_run(config, lambda event: None, group=group, owner="stopped.1")
    group.all_gather_object("stopped")
    reports: list[Event] = []
    capture_run(config, reports.append, resume=True, group=group, owner="stopped.2")
    return sum(isinstance(event, WindowReplay) for event in reports)
