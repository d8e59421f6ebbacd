"""Capture by processes that a launcher has started: torchrun, or DeepSpeed's own.

Each of them runs the same command and is told by its environment which it is. No Ray is needed;
who restarts lost processes is the launcher's affair, and ``--resume`` goes on from the last marker.
"""

import os
import uuid
from dataclasses import replace

import torch
from torch import distributed as dist

from capture.config.settings import Config
from capture.device import choose_device
from capture.errors import ConfigError
from capture.process_group import PATIENCE, Together
from capture.training.loop import Report, capture_run

TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What launchers set."""


def is_launched() -> bool:
    """Whether this process is one of several that a launcher has started."""
    return all(name in os.environ for name in TOLD)


def leads() -> bool:
    """Whether this process speaks for all; so does one that no launcher has started."""
    return not is_launched() or os.environ["RANK"] == "0"


def capture_launched(
    config: Config, report: Report, *, resume: bool = False, overwrite: bool = False
) -> None:
    """As ``capture_run``, together with the launcher's other processes, which are the workers.

    Raises what ``capture_run`` raises, and ``ConfigError`` for another ``workers.count``.
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
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        group = Together(device)
        owner = group.gather(f"{uuid.uuid4().hex}.1")[0]
        capture_run(config, report, resume=resume, overwrite=overwrite, group=group, owner=owner)
    finally:
        dist.destroy_process_group()
