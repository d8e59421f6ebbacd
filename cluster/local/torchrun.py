"""Capture in processes that a launcher started: torchrun, or DeepSpeed's launcher.

Each process runs the same command and finds its rank in its environment. Ray is not needed. The
launcher restarts lost processes; ``--resume`` continues from the last marker.
"""

import os
import uuid
from dataclasses import replace

import torch
from torch import distributed as dist

from capture.config.settings import Config
from capture.device import choose_device
from capture.errors import ConfigError
from capture.process_group import DistributedGroup, gradient_timeout
from capture.training.loop import Report, capture_run

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that launchers set."""


def is_launched() -> bool:
    """Whether a launcher started this process."""
    return all(name in os.environ for name in LAUNCHER_VARIABLES)


def leads() -> bool:
    """Whether this process prints: rank 0, or a process that no launcher started."""
    return not is_launched() or os.environ["RANK"] == "0"


def capture_launched(
    config: Config, report: Report, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Like ``capture_run``, with all processes of the launcher as workers.

    Raises what ``capture_run`` raises, and ``ConfigError`` if ``workers.count`` is set to another
    number than the launcher's.
    """
    count = int(os.environ["WORLD_SIZE"])
    if config.workers.count not in (1, count):
        problem = f"got {config.workers.count}, but the launcher has started {count}"
        raise ConfigError("workers.count", problem, "Leave it out")
    config = replace(config, workers=replace(config.workers, count=count))
    device = choose_device(config.training.device)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.set_num_threads(config.workers.cpus)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=gradient_timeout(config.store.patience_seconds),
    )
    try:
        group = DistributedGroup(device)
        owner = group.all_gather_object(f"{uuid.uuid4().hex}.1")[0]
        capture_run(config, report, resume=resume, overwrite=overwrite, group=group, owner=owner)
    finally:
        dist.destroy_process_group()
