"""Training in several processes that cannot be recorded is refused with the cause."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from custom_loops import TOP, Small, loss_of, tokens, uri
from processes import run_processes
from separate_loops import train
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from capture.custom_loop.ranks.wrappers import num_processes, require_known
from capture.custom_loop.record import record
from capture.errors import AuditError, RunError, UnitError

ONE = "Pass the model in torch.nn.parallel.DistributedDataParallel over all processes"


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
    assert num_processes() == 1


def test_a_wrapper_around_a_part_of_the_model_is_refused_at_the_start(tmp_path, group):
    model = nn.Sequential(nn.parallel.DistributedDataParallel(Small()), nn.Identity())
    recording = record(model, torch.optim.SGD(model.parameters(), 0.1), run=uri(tmp_path))
    wanted = r"model\.0: is DistributedDataParallel \(100\.0% of the model\), but only a part of "
    wanted += "the model"
    with pytest.raises(RunError, match=f"{wanted}. {ONE}"):
        recording.__enter__()
    assert not Path(uri(tmp_path)).exists()


def test_an_average_over_some_processes_is_refused_at_the_start(tmp_path, group):
    model = nn.parallel.DistributedDataParallel(Small())  # over the one process that there is
    recording = record(model, torch.optim.SGD(model.parameters(), 0.1), run=uri(tmp_path))
    wanted = "model: is DistributedDataParallel over 1 of 2 processes"
    with pytest.raises(RunError, match=f"{wanted}. {ONE}"):
        recording.__enter__()
    assert not Path(uri(tmp_path)).exists()


def test_wrappers_that_split_the_parameters_are_refused_at_the_start(tmp_path):
    for name, message in {
        "FullyShardedDataParallel": r"\(100.0% of the model\), of FSDP1, whose optimizer trains f",
        "DeepSpeedEngine": "whose optimizer trains partitions of the parameters. Use ontogeny cap",
    }.items():
        model = nn.Sequential(type(name, (Small,), {})())
        recording = record(model, torch.optim.SGD(model.parameters(), 0.1), run=uri(tmp_path))
        with pytest.raises(RunError, match=rf"^model\.0: is {name}.* {message}"):
            recording.__enter__()


def test_batch_normalization_over_all_ranks_is_refused(group):
    model = nn.Sequential(nn.Linear(2, 2), nn.SyncBatchNorm(2))
    wanted = r"^model\.1: is SyncBatchNorm \(40\.0% of the model\), in which "
    wanted += "the datums of all ranks interact. Freeze it by"
    with pytest.raises(RunError, match=wanted):
        require_known(model)
    model.eval()
    require_known(model)


@pytest.mark.filterwarnings("ignore")
def test_parameters_sharded_over_some_processes_are_refused_at_the_start(tmp_path, group):
    model = Small()
    fully_shard(model)
    recording = record(model, torch.optim.SGD(model.parameters(), 0.1), run=uri(tmp_path))
    wanted = r"embedding\.weight: is sharded over 1 of 2 processes \(Embedding embedding, "
    wanted += r"33\.5% of the model\)\. Shard over all"
    with pytest.raises(UnitError, match=wanted):
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


@pytest.mark.slow
def test_two_processes_that_average_their_gradients_are_told_so(tmp_path):
    run_processes(2, train, (tmp_path, "averaged"), tmp_path)
    for rank in range(2):
        found = (tmp_path / f"averaged-{rank}.txt").read_text()
        assert "as if gradients were averaged over 2 processes. Pass the model in torch" in found


@pytest.mark.slow
def test_of_two_processes_that_record_one_run_the_second_is_refused(tmp_path):
    run_processes(2, train, (tmp_path, "one run"), tmp_path)
    assert (tmp_path / "one run-0.txt").read_text() == "none"
    assert "is being captured by process" in (tmp_path / "one run-1.txt").read_text()
