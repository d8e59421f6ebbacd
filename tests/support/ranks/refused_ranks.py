"""Causes for which two processes refuse to record their loop, or end its recording."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from custom_loops import Small, tokens
from recorded_ranks import (
    DATUMS,
    SETTINGS,
    Numbered,
    Products,
    Setting,
    batch_of,
    loss_of,
    recorded,
    take_step,
)
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from capture.custom_loop.record import record
from capture.errors import CaptureError, StoreError
from capture.process_group import Group
from capture.store import Store


def error_of(cause: Callable[[Group, Path], None], group: Group, folder: Path) -> str:
    """Return the error of this rank, with its class; "" if there is none."""
    try:
        cause(group, folder)
    except (CaptureError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        distributed.barrier()
    return ""


PLAIN = Setting()


def wrong_id_on_one_rank(group: Group, folder: Path) -> None:
    with recorded(PLAIN, folder, "run", group) as (model, optimizer, recorder):
        take_step(PLAIN, model, optimizer, recorder, 0, [group])
        optimizer.zero_grad()
        recorder.datums(np.array([DATUMS + 7 if group.rank else 0]))
        loss_of(PLAIN, model, np.array([0])).backward()
        optimizer.step()


def own_error_on_one_rank(group: Group, folder: Path) -> None:
    with recorded(PLAIN, folder, "run", group) as (model, optimizer, recorder):
        take_step(PLAIN, model, optimizer, recorder, 0, [group])
        if group.rank:
            raise ValueError("the disk of the data is gone")


def unequal_numbers_of_steps(group: Group, folder: Path) -> None:
    with recorded(PLAIN, folder, "run", group) as (model, optimizer, recorder):
        for step in range(2):  # the wrapper exchanges more than gradients in its second step
            take_step(PLAIN, model, optimizer, recorder, step, [group])
        if group.rank:
            assert isinstance(model, DistributedDataParallel)
            with model.no_sync():  # otherwise the backward pass waits for the other rank
                take_step(PLAIN, model, optimizer, recorder, 2, [group])


def never_averaged(group: Group, folder: Path) -> None:
    with recorded(PLAIN, folder, "run", group) as (model, optimizer, recorder):
        assert isinstance(model, DistributedDataParallel)
        with model.no_sync():
            take_step(PLAIN, model, optimizer, recorder, 0, [group])


def joined(group: Group, folder: Path) -> None:
    with recorded(PLAIN, folder, "run", group) as (model, optimizer, recorder):
        assert isinstance(model, DistributedDataParallel)
        with model.join():
            take_step(PLAIN, model, optimizer, recorder, 0, [group])


def noise_on_gradients(group: Group, folder: Path) -> None:
    with recorded(PLAIN, folder, "run", group) as (model, optimizer, recorder):
        recorder.datums(batch_of(0)[:4])
        loss_of(PLAIN, model, batch_of(0)[:4]).backward()
        next(model.parameters()).grad.add_(1.0)  # pyright: ignore
        optimizer.step()


def a_store_that_fails_on_one_rank(group: Group, folder: Path) -> None:
    put = Store.put

    def fail(store: Store, key: str, data: Any) -> None:
        if group.rank and key.startswith("outliers/"):
            raise StoreError(key, "cannot be written: no space is left")
        put(store, key, data)

    with (
        mock.patch.object(Store, "put", fail),
        recorded(PLAIN, folder, "run", group) as (model, optimizer, recorder),
    ):
        for step in range(400):  # the writing thread takes a while
            take_step(PLAIN, model, optimizer, recorder, step, [group])


def other_runs(group: Group, folder: Path) -> None:
    with recorded(PLAIN, folder, f"run-{group.rank}", group):
        pass


def other_rates(group: Group, folder: Path) -> None:
    setting = Setting(options={"lr": 0.1 + group.rank})
    with recorded(setting, folder, "run", group):
        pass


def in_memory(group: Group, folder: Path) -> None:
    model = DistributedDataParallel(Small())
    with record(model, torch.optim.SGD(model.parameters(), 0.1), run="memory://run"):
        pass


def changed_by_a_hook(group: Group, folder: Path) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    model = DistributedDataParallel(Small())
    model.register_comm_hook(None, fp16_compress_hook)
    with record(model, torch.optim.SGD(model.parameters(), 0.1), run=str(folder / "run")):
        pass


def a_unit_that_no_rank_can_split(group: Group, folder: Path) -> None:
    class Mixed(Small):
        def forward(self, token_NT: Tensor) -> Tensor:
            return super().forward(token_NT) * self.norm.weight.square().sum()

    setting = Setting(model=Mixed)
    with recorded(setting, folder, "run", group) as (model, optimizer, recorder):
        take_step(setting, model, optimizer, recorder, 0, [group])


def an_existing_run(group: Group, folder: Path) -> None:
    with recorded(PLAIN, folder.parent, "clipped", group):
        pass


def never_reduced(group: Group, folder: Path) -> None:
    with recorded(SETTINGS["sharded"], folder, "run", group) as (model, optimizer, recorder):
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(False)
        recorder.datums(batch_of(0)[:4])
        loss_of(PLAIN, model, batch_of(0)[:4]).backward()
        optimizer.step()


def record_nothing(model: nn.Module, folder: Path) -> None:
    with record(model, torch.optim.SGD(model.parameters(), 0.1), run=str(folder / "run")):
        pass


def reduced_in_bfloat16(group: Group, folder: Path) -> None:
    model = Products()
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    record_nothing(model, folder)


def sharded_in_part(group: Group, folder: Path) -> None:
    model = Small()
    fully_shard(model.layer)
    record_nothing(model, folder)


def tensor_parallel(group: Group, folder: Path) -> None:
    model = Small()
    parallelize_module(model, init_device_mesh("cpu", (2,)), {"layer": ColwiseParallel()})
    record_nothing(model, folder)


def sharded_along_two_axes(group: Group, folder: Path) -> None:
    model = Small()
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicated", "sharded"))
    fully_shard(model, mesh=mesh)
    record_nothing(model, folder)


def other_divisor(group: Group, folder: Path) -> None:
    model = Small()
    fully_shard(model).set_gradient_divide_factor(1.0)
    record_nothing(model, folder)


def another_batch_after_resuming(group: Group, folder: Path) -> None:
    setting = SETTINGS["adamw"]
    with recorded(setting, folder.parent, "smaller", group, resume=True) as parts:
        parts[-1].restore()
        take_step(setting, *parts, 2, [Numbered(group.rank, 4)])


def outputs_of_all_ranks_in_the_loss(group: Group, folder: Path) -> None:
    with recorded(PLAIN, folder, "run", group) as (model, optimizer, recorder):
        recorder.datums(np.arange(4) + 4 * group.rank)
        x_NV = model(tokens(DATUMS)[4 * group.rank :][:4, :-1])[:, 0]
        parts = [torch.empty(x_NV.shape) for _ in range(group.size)]
        distributed.all_gather(parts, x_NV.detach())
        parts[group.rank] = x_NV
        F.cross_entropy(x_NV @ torch.cat(parts).T, torch.arange(4) + 4 * group.rank).backward()
        optimizer.step()


CAUSES = {
    cause.__name__: cause
    for cause in (
        wrong_id_on_one_rank,
        own_error_on_one_rank,
        unequal_numbers_of_steps,
        never_averaged,
        joined,
        noise_on_gradients,
        a_store_that_fails_on_one_rank,
        other_runs,
        other_rates,
        in_memory,
        changed_by_a_hook,
        a_unit_that_no_rank_can_split,
        an_existing_run,
        another_batch_after_resuming,
        never_reduced,
        reduced_in_bfloat16,
        sharded_in_part,
        tensor_parallel,
        sharded_along_two_axes,
        other_divisor,
        outputs_of_all_ranks_in_the_loss,
    )
}
