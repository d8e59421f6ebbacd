"""A loop of two processes that ``ontogeny.record`` does not take for one."""

import os
import time
from pathlib import Path

import torch
from custom_loops import TOP, Small, loss_of, tokens, uri
from torch import distributed

from capture.custom_loop.record import record
from capture.errors import AuditError, RunError


def train(rank: int, folder: Path, kind: str) -> None:
    """Record a loop of two processes, and write the error of each to a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    path = f"file://{folder}/{kind}-group"
    distributed.init_process_group("gloo", init_method=path, rank=rank, world_size=2)
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run, error = uri(folder, "one" if kind == "one run" else f"{kind}-{rank}"), "none"
    ready, done = folder / "ready", folder / "done"
    if kind == "one run" and rank == 1:
        wait_for(ready)
    try:
        with record(model, optimizer, run=run, outliers=TOP):
            ready.touch()
            loss_of(model, tokens()[rank * 6 : rank * 6 + 6]).backward()
            if kind == "averaged":
                for parameter in model.parameters():
                    distributed.all_reduce(parameter.grad, distributed.ReduceOp.AVG)
            optimizer.step()
            if kind == "one run":
                wait_for(done)
    except (AuditError, RunError) as found:
        error = str(found)
    done.touch()
    (folder / f"{kind}-{rank}.txt").write_text(error)
    os._exit(0)  # gloo may abort if the other process has ended


def wait_for(path: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(path)
