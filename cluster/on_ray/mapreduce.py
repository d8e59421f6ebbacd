"""Jobs on Ray: tasks on the workers read shards and merge the partial results.

The driver holds references, not partials. It merges them in the same tree as the local runner, in
the order of the shards, so that sums of floats are equal to the last bit. A merge waits for its two
parts and occupies no worker until then. While one shard is slow, its neighbours are merged, so that
at most log₂ n partials wait for it. Each worker process keeps one copy of the job.

The driver keeps a record of each task until its result is released, so the number of tasks is
bounded (``policy.max_tasks``): in a larger job a task maps a block of neighbouring shards and
merges them itself. The length of a block is a power of two, which leaves the merge tree unchanged.

Ray recovers from the loss of a worker or node: it repeats the tasks that were running there and
those whose results were lost. What a shard raises is not retried; it arrives with its own type.
"""

import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from analysis.jobs.job import Job, merge_all
from analysis.run.scan import Shard
from capture.errors import StoreError
from capture.format.markers import START
from capture.store import Store
from cluster.local.threads import Report
from cluster.on_ray.policy import MAX_LOSSES, block_size, max_tasks, pieces_at_once
from cluster.on_ray.results import result_of
from cluster.on_ray.session import cluster_size

Partial = TypeVar("Partial")
Result = TypeVar("Result")

CANCEL_ATTEMPTS, CANCEL_SECONDS = 3, 1.0
"""How often running tasks are cancelled, and how long they may take to end each time."""


def run_job(
    job: Job[Partial, Result], shards: Sequence[Shard], report: Report | None = None
) -> Result:
    """Run a job over one or more shards; returns what the local ``run_job`` returns.

    Needs a session (``cluster.on_ray.session``). Raises what the first failing shard raised,
    ``StoreError`` for a run that the workers cannot read, ``ClusterError`` for a shard whose worker
    was lost on every attempt.
    """
    require_visible(shards[0].store)
    held = [ray.put(job)]  # in a list, Ray passes the reference and not the job itself
    cpus, running = cluster_size().cpus, RunningBlocks(shards, report)
    limit = pieces_at_once(cpus)

    def partials() -> Iterator[ObjectRef]:
        for block in split_into_blocks(shards, max_tasks(cpus)):
            running.wait_for_room(limit)
            partial, receipt = map_block.remote(held, block)  # pyright: ignore[reportGeneralTypeIssues]
            running.blocks[receipt] = block[0].where
            yield partial

    try:
        whole = merge_all(partials(), lambda a, b: merge_two.remote(held, a, b))
        running.wait_for_room(1)
        return job.finish(shard_result(whole, "the merged result"))
    finally:
        running.cancel()


def split_into_blocks(shards: Sequence[Shard], most: int) -> Iterator[Sequence[Shard]]:
    """Split the shards in order into at most ``most`` blocks of 2ⁿ; the last can be shorter."""
    size = block_size(len(shards), most)
    return (shards[start : start + size] for start in range(0, len(shards), size))


class RunningBlocks:
    """Blocks that workers are processing; each ends when its receipt is ready."""

    def __init__(self, shards: Sequence[Shard], report: Report | None) -> None:
        self.blocks: dict[ObjectRef, str] = {}
        """Receipt → first shard of the block, for messages."""
        self.report = report
        self.rows, self.num_rows = 0, sum(shard.rows for shard in shards)

    def wait_for_room(self, limit: int) -> None:
        """Wait until fewer than ``limit`` blocks are running; raises what a shard raised."""
        while len(self.blocks) >= limit:
            for receipt in ray.wait(list(self.blocks))[0]:
                self.rows += shard_result(receipt, self.blocks.pop(receipt))
                if self.report:
                    self.report(self.rows, self.num_rows)

    def cancel(self) -> None:
        """Cancel running blocks; merges that wait for them are cancelled with them.

        A task whose worker is just starting it can miss the cancellation, so tasks that have not
        ended are cancelled again.
        """
        left = list(self.blocks)
        for _ in range(CANCEL_ATTEMPTS):
            if not left:
                break
            for receipt in left:
                ray.cancel(receipt)
            _, left = ray.wait(left, num_returns=len(left), timeout=CANCEL_SECONDS)


@ray.remote(num_returns=2, max_retries=MAX_LOSSES)
def map_block(held: list[ObjectRef], block: Sequence[Shard]) -> tuple[Any, int]:
    """Map and merge a block; returns the partial and, as a receipt for the driver, its rows."""
    accept_sigint()
    job = fetch_job(held[0])
    partial = merge_all(map(job.map_shard, block), job.merge)
    return partial, sum(shard.rows for shard in block)


def accept_sigint() -> None:
    """Take SIGINT, with which Ray cancels a task.

    Processes of a cluster that a shell started in the background (``nohup … &``) ignore it.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@ray.remote(max_retries=MAX_LOSSES)
def merge_two(held: list[ObjectRef], a: Any, b: Any) -> Any:
    return fetch_job(held[0]).merge(a, b)


@lru_cache(maxsize=1)
def fetch_job(job: ObjectRef) -> Job:
    """The job; each worker process fetches and unpickles it once."""
    return ray.get(job)


def shard_result(reference: ObjectRef, where: str) -> Any:
    lost = f"was lost with its worker, {MAX_LOSSES + 1} times"
    return result_of(reference, where, lost, "Check whether workers run out of memory")


def require_visible(store: Store, key: str = START) -> None:
    """Raises ``StoreError`` for a run that not every worker can read.

    ``key``: a file of it that exists.
    """
    scheme = store.uri.partition("://")[0] if "://" in store.uri else "file"
    if scheme == "memory":
        remedy = "Capture to a folder or to s3://, or leave out --ray"
        raise StoreError(
            store.uri, "lies in the memory of one process, out of workers' reach", remedy
        )
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if scheme not in ("file", "local") or len(nodes) < 2:
        return
    on = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=True) for node in nodes]
    checks = [can_see.options(scheduling_strategy=where).remote(store, key) for where in on]
    pairs = zip(nodes, checks, strict=True)
    unable = {node["NodeName"] for node, check in pairs if not shard_result(check, store.uri)}
    if unable:
        remedy = "Put the run on a folder that all nodes share, or on s3://"
        raise StoreError(store.uri, f"cannot be seen from {', '.join(sorted(unable))}", remedy)


@ray.remote(num_cpus=0, max_retries=MAX_LOSSES)
def can_see(store: Store, key: str) -> bool:
    return store.exists(key)
