"""The mailbox between a group of workers and the driver, without a cluster."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist

pytest.importorskip("ray", reason="needs the extra ray")

from tiny import tiny_config

from cluster.local.signals import Stopped
from cluster.on_ray import driver_mailbox
from cluster.on_ray.driver_mailbox import Mailbox, Task, run_worker
from cluster.terminal.progress import GroupRestart


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group that holds only this process."""
    threads = torch.get_num_threads()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def test_starts_are_counted_and_reported_from_the_second_on() -> None:
    made = Mailbox(3)
    assert (made.start().number, made.drain()) == (1, [])
    assert (made.start().number, made.drain()) == (2, [GroupRestart(1, 3)])
    assert made.drain() == []


@pytest.mark.parametrize("folder", ["nowhere", ""])
def test_a_group_that_restarts_after_the_driver_stopped_trains_no_step(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """It starts although the driver's working directory is missing here, or was deleted there."""
    made = Mailbox(3)
    monkeypatch.setattr(driver_mailbox.ray, "get", lambda answer: answer)
    monkeypatch.setattr(
        driver_mailbox, "capture_run", lambda *given, **options: trained.append(given)
    )
    trained: list[object] = []
    task = Task(
        config=tiny_config(tmp_path),
        folder=folder,
        group="ours",
        resume=False,
        overwrite=False,
        mailbox=SimpleNamespace(start=SimpleNamespace(remote=made.start)),  # pyright: ignore
    )
    run_worker({"task": task})
    assert len(trained) == 1
    made.stop()
    with pytest.raises(Stopped):
        run_worker({"task": task})
    assert len(trained) == 1
