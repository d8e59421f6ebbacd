"""The workers that take each step together: all hold the whole model, each has its own slots.

What they compute of a step are sums over their slots, so that adding up over workers gives what one
process computes for the whole batch, but for the order of additions. ``SingleProcess`` is that one process.
Every worker calls the same operations in the same order; each waits for all others.

Shapes: M rows of one worker.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from capture.errors import AuditError, ConfigError

COLLECTIVE_TIMEOUT = timedelta(hours=6)
"""How long one worker may wait for another's store; who has died is noticed at once."""


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """How many processes capture, on which of a cluster's machines."""

    count: int = 1
    """Workers; more than one run on a Ray cluster, and each takes batch / count of the slots."""
    cpus: int = 1
    """Cores that each worker takes, and its threads; on a cluster with GPUs one of those too."""
    max_failures: int = 3
    """How often lost workers are replaced, and the group goes on from the last segment."""

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("cpus", 1), ("max_failures", 0)):
            if (found := getattr(self, name)) < least:
                raise ConfigError(f"workers.{name}", f"got {found}, must be at least {least}")


def require_equal_shares(config: WorkersConfig, *, batch: int, accumulate: int) -> None:
    """Raises ``ConfigError`` if the workers cannot have equally many slots of a micro-batch."""
    if config.count > batch:
        problem = f"got {config.count}, must be at most training.batch = {batch}: a slot each"
        raise ConfigError("workers.count", problem)
    if batch % config.count:
        problem = f"got {config.count}, must divide training.batch = {batch}"
        raise ConfigError("workers.count", problem)
    if batch // config.count % accumulate:
        share = f"the {batch // config.count} slots of each of {config.count} workers"
        raise ConfigError("training.accumulate", f"got {accumulate}, must divide {share}")


class Group(Protocol):
    """One worker's view of all of them."""

    rank: int
    """This worker's number, from 0; the first one writes what belongs to all."""
    size: int

    def slots(self, batch: int) -> range:
        """This worker's slots of a batch; all workers' together, in order of rank, are all."""
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the workers; bits are the same on all of them."""
        ...

    def all_gather(self, x_M: Tensor) -> list[Tensor]:
        """Every worker's tensor of one axis, by rank; lengths may differ."""
        ...

    def for_other_thread(self) -> "Group":
        """The same workers, to be asked on another thread; all must make it at the same point."""
        ...

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every worker's value (JSON), by rank."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(found.tolist())) for found in self.all_gather(data)]


class SingleProcess(Group):
    """A single process; nothing is sent, nothing changed."""

    rank = 0
    size = 1

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        pass

    def all_gather(self, x_M: Tensor) -> list[Tensor]:
        return [x_M]

    def for_other_thread(self) -> Group:
        return self


SINGLE_PROCESS = SingleProcess()


class DistributedGroup(Group):
    """The workers of torch's default process group, which must have been set up."""

    def __init__(self, device: torch.device, process_group: dist.ProcessGroup | None = None):
        """``device``: where the process group can reach tensors: "cuda" for NCCL."""
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.device = device
        self.process_group = process_group

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Tensors of one type go through as one flat buffer."""
        for kind in {tensor.dtype: None for tensor in tensors}:
            ours = [tensor for tensor in tensors if tensor.dtype == kind]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in ours]).to(self.device)
            dist.all_reduce(flat, group=self.process_group)
            pieces = flat.split([tensor.numel() for tensor in ours])
            for tensor, piece in zip(ours, pieces, strict=True):
                tensor.detach().copy_(piece.view_as(tensor))

    def all_gather(self, x_M: Tensor) -> list[Tensor]:
        count = torch.tensor([len(x_M)], device=self.device)
        counts = self.all_gather_equal(count).flatten().tolist()
        padded = torch.zeros(max(counts), dtype=x_M.dtype, device=self.device)
        padded[: len(x_M)] = x_M
        rows = self.all_gather_equal(padded).to(x_M.device)
        return [row[:count] for row, count in zip(rows, counts, strict=True)]

    def all_gather_equal(self, x_M: Tensor) -> Tensor:
        """Tensors of one length, a row a worker."""
        found = x_M.new_empty(self.size, len(x_M))
        dist.all_gather(list(found.unbind()), x_M, group=self.process_group)
        return found

    def for_other_thread(self) -> Group:
        made = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        assert isinstance(made, dist.ProcessGroup)
        return DistributedGroup(torch.device("cpu"), made)


def require_same(group: Group, tensors: Sequence[Tensor], where: str) -> None:
    """Raises ``AuditError`` if these float32 tensors are not the same on all workers, bit by bit.

    They are when every worker has applied the same sums to the same weights.
    """
    if group.size == 1:
        return
    sums = [tensor.detach().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors]
    if len({tuple(found) for found in group.all_gather_object(torch.stack(sums).tolist())}) > 1:
        problem = "the workers' copies of the weights have come apart"
        raise AuditError(where, problem, "Go on with --resume, on machines that compute alike")
