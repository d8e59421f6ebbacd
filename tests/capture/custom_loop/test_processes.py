"""Training in several processes is refused with the cause, not with what the audit finds."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from custom_loops import TOP, Small, loss_of, tokens, uri
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn

from capture.custom_loop import units
from capture.custom_loop.record import record
from capture.errors import AuditError, RunError, UnitError

ONE = "ontogeny.record records one process"


@pytest.fixture
def group(monkeypatch) -> Iterator[None]:
    """A process group of one process, which counts as two."""
    store = distributed.HashStore()  # pyright: ignore
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    yield
    monkeypatch.undo()
    distributed.destroy_process_group()


def test_without_a_process_group_there_is_one_process():
    assert units.num_processes() == 1


def test_a_model_that_averages_gradients_is_refused_at_the_start(tmp_path, group):
    model = nn.parallel.DistributedDataParallel(Small())
    recording = record(model, torch.optim.SGD(model.parameters(), 0.1), run=uri(tmp_path))
    wanted = "model: is DistributedDataParallel, which averages gradients over 2 processes"
    with pytest.raises(RunError, match=f"{wanted}. {ONE}"):
        recording.__enter__()
    assert not Path(uri(tmp_path)).exists()


@pytest.mark.filterwarnings("ignore")
def test_parameters_sharded_over_processes_are_refused_at_the_start(tmp_path, group):
    model = Small()
    fully_shard(model)
    recording = record(model, torch.optim.SGD(model.parameters(), 0.1), run=uri(tmp_path))
    wanted = "embedding.weight: is a DTensor, sharded over 2 processes"
    with pytest.raises(UnitError, match=f"{wanted}. {ONE}"):
        recording.__enter__()
    assert not Path(uri(tmp_path)).exists()


def test_the_audit_says_that_other_processes_take_part(tmp_path, group):
    def loop() -> None:
        model = Small()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with record(model, optimizer, run=uri(tmp_path), outliers=TOP):
            loss_of(model, tokens()).backward()
            assert model.out.bias.grad is not None
            model.out.bias.grad += torch.randn(11)  # the other process's datums
            optimizer.step()

    wanted = f"of it, allowed: 1e-05, as if gradients were averaged over 2 processes. {ONE}"
    with pytest.raises(AuditError, match=re.escape(wanted)):
        loop()


# --- two processes --------------------------------------------------------------------------------


def train(rank: int, folder: Path, kind: str) -> None:
    """Record a loop of two processes, and write the error of each to a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    path = f"file://{folder}/{kind}-group"
    distributed.init_process_group("gloo", init_method=path, rank=rank, world_size=2)
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trained = nn.parallel.DistributedDataParallel(model) if kind == "averaged" else model
    run, error = uri(folder, "one" if kind == "one run" else f"{kind}-{rank}"), "none"
    ready, done = folder / "ready", folder / "done"
    if kind == "one run" and rank == 1:
        wait_for(ready)
    try:
        with record(model, optimizer, run=run, outliers=TOP):
            ready.touch()
            loss_of(trained, tokens()[rank * 6 : rank * 6 + 6]).backward()
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


@pytest.mark.slow
def test_two_processes_that_average_their_gradients_are_told_so(tmp_path):
    spawn(train, args=(tmp_path, "averaged"), nprocs=2)
    for rank in range(2):
        found = (tmp_path / f"averaged-{rank}.txt").read_text()
        assert "as if gradients were averaged over 2 processes. ontogeny.record" in found


@pytest.mark.slow
def test_of_two_processes_that_record_one_run_the_second_is_refused(tmp_path):
    spawn(train, args=(tmp_path, "one run"), nprocs=2)
    assert (tmp_path / "one run-0.txt").read_text() == "none"
    assert "is being captured by process" in (tmp_path / "one run-1.txt").read_text()
