"""Collective operations of the workers that take each step together on one batch.

Each worker has its own slots of the batch and computes sums over them. Adding these sums over all
workers gives the result of a single process, except for the order of additions. ``SingleProcess``
is a group of one. All workers must call the same operations in the same order, and each operation
waits for all workers.

Shapes: M rows of one worker.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from capture.errors import AuditError, ConfigError

WRITERS_TIMEOUT = timedelta(hours=6)
"""How long a writer may wait for another worker's store; a dead worker is noticed at once."""
COMPUTE_SECONDS = 1200.0
"""How long a worker may compute between two exchanges of gradients."""
HEARTBEAT_SECONDS = 10.0
"""Interval of the signs that the first worker gives while the others wait for it."""


def gradient_timeout(patience_seconds: float) -> timedelta:
    """How long a worker may wait for another's gradients: a hung card must not hold all others.

    A worker whose store is away stops training for up to ``store.patience_seconds``.
    """
    return timedelta(seconds=COMPUTE_SECONDS + patience_seconds)


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """How many processes capture a run together, and what each of them needs."""

    count: int = 1
    """Number of workers; several run on a Ray cluster, each with batch / count of the slots."""
    cpus: int = 1
    """Cores, and threads, per worker; on a cluster with GPUs each worker takes a GPU too."""
    max_failures: int = 3
    """How often lost workers are replaced; the group then resumes from the last segment."""

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("cpus", 1), ("max_failures", 0)):
            if (found := getattr(self, name)) < least:
                raise ConfigError(f"workers.{name}", f"got {found}, must be at least {least}")


def require_equal_shares(config: WorkersConfig, *, batch: int, accumulate: int) -> None:
    """Raise ``ConfigError`` if a micro-batch's slots cannot be shared equally among workers."""
    if config.count > batch:
        problem = f"got {config.count}, must be at most training.batch = {batch}: one slot each"
        raise ConfigError("workers.count", problem)
    if batch % config.count:
        problem = f"got {config.count}, must divide training.batch = {batch}"
        raise ConfigError("workers.count", problem)
    if batch // config.count % accumulate:
        share = f"the {batch // config.count} slots of each of {config.count} workers"
        raise ConfigError("training.accumulate", f"got {accumulate}, must divide {share}")


class Group(Protocol):
    """A group of workers, seen from one of them."""

    rank: int
    """This worker's number, from 0; worker 0 writes the files that belong to all."""
    size: int
    """Number of workers."""

    def slots(self, batch: int) -> range:
        """Return this worker's slots of a batch: consecutive, in the order of ranks."""
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over workers, with identical bits on all of them."""
        ...

    def all_gather(self, x_M: Tensor) -> list[Tensor]:
        """Return every worker's one-dimensional tensor, by rank; lengths may differ."""
        ...

    def for_other_thread(self) -> "Group":
        """Return a group of the same workers for use on another thread.

        All workers must call this at the same point.
        """
        ...

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every worker's JSON-serializable value, by rank."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(found.tolist())) for found in self.all_gather(data)]


class SingleProcess(Group):
    """A group of one process: operations return their input unchanged."""

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
        """``device``: where the backend needs its tensors, "cuda" for NCCL."""
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.device = device
        self.process_group = process_group

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Sum in place over workers; tensors of one type are sent as one flat buffer."""
        for kind in {tensor.dtype: None for tensor in tensors}:
            ours = [tensor for tensor in tensors if tensor.dtype == kind]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in ours]).to(self.device)
            dist.all_reduce(flat, group=self.process_group)
            pieces = flat.split([tensor.numel() for tensor in ours])
            for tensor, piece in zip(ours, pieces, strict=True):
                tensor.detach().copy_(piece.view_as(tensor))

    def all_gather(self, x_M: Tensor) -> list[Tensor]:
        # torch's all_gather needs equal lengths: exchange lengths, pad, then cut the padding off.
        count = torch.tensor([len(x_M)], device=self.device)
        counts = self.all_gather_equal(count).flatten().tolist()
        padded = torch.zeros(max(counts), dtype=x_M.dtype, device=self.device)
        padded[: len(x_M)] = x_M
        rows = self.all_gather_equal(padded).to(x_M.device)
        return [row[:count] for row, count in zip(rows, counts, strict=True)]

    def all_gather_equal(self, x_M: Tensor) -> Tensor:
        """Return every worker's tensor, all of one length, as rows, [workers, M]."""
        found = x_M.new_empty(self.size, len(x_M))
        dist.all_gather(list(found.unbind()), x_M, group=self.process_group)
        return found

    def for_other_thread(self) -> Group:
        # The other thread's operations would interleave with ours in one group. They exchange
        # small tensors on the CPU, for which gloo suffices.
        made = dist.new_group(backend="gloo", timeout=WRITERS_TIMEOUT)
        assert isinstance(made, dist.ProcessGroup)
        return DistributedGroup(torch.device("cpu"), made)


# --- work of the first worker alone ---------------------------------------------------------------


@contextmanager
def heartbeat(group: Group) -> Iterator[Callable[[], None]]:
    """Let the first worker work alone for as long as it takes, such as on an evaluation.

    The others call ``wait_for_first`` meanwhile. The first one must call the yielded function more
    often than the group's timeout: a hung worker is still noticed.
    """
    last = time.monotonic()

    def alive() -> None:
        nonlocal last
        if time.monotonic() - last >= HEARTBEAT_SECONDS:
            group.all_gather_object(True)
            last = time.monotonic()

    yield alive
    group.all_gather_object(False)


def wait_for_first(group: Group) -> None:
    """Wait until the first worker has left its ``heartbeat`` block."""
    while group.all_gather_object(True)[0]:
        pass


def require_same(group: Group, tensors: Sequence[Tensor], where: str) -> None:
    """Raise ``AuditError`` if these float32 tensors differ in any bit between workers.

    They agree if every worker has applied the same sums to the same weights.
    """
    if group.size == 1:
        return
    # Sums of bit patterns as integers have no rounding: a difference in one entry always shows, and
    # differences in several entries are missed only if they cancel exactly.
    sums = [tensor.detach().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors]
    if len({tuple(found) for found in group.all_gather_object(torch.stack(sums).tolist())}) > 1:
        problem = "the workers' copies of the weights differ"
        raise AuditError(where, problem, "Resume with --resume on machines of the same kind")
