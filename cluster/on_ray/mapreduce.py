"""Jobs on Ray: shards are read by tasks where the workers are, partials merged by tasks as well.

The driver holds references, no partials. It merges them in the same tree as the local runner, in
the order of the shards, so that even sums of floats are the same to the last bit. A merge waits for
its two parts and takes no worker until then; shards that a slow one holds up are merged meanwhile
with their neighbours, so that log₂ n partials wait for it. Each worker keeps one copy of the job.

What the driver remembers of a task lasts as long as the result that rests on it, so their number
is bounded (``policy.most_tasks``): a task of a larger job maps a block of neighbouring shards and
merges them itself. Blocks are as long as a power of two, which leaves the tree as it is.

A lost worker or node is Ray's to make good: the task runs again, and so do those whose results went
with it. What a shard raises is not tried again; it arrives as it was raised.
"""

import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from analysis.jobs.job import Job, merge_all
from analysis.run.scan import Shard
from capture.errors import ClusterError, StoreError
from capture.format.markers import START
from capture.store.store import Store
from cluster.local.threads import Report
from cluster.on_ray.policy import MAX_LOSSES, block_size, most_tasks, pieces_at_once
from cluster.on_ray.session import first_line, standing

Partial = TypeVar("Partial")
Result = TypeVar("Result")

TELLINGS, HEARD_SECONDS = 3, 1.0
"""How often tasks are told to leave off, and how long each time they may take to."""


def run_job(
    job: Job[Partial, Result], shards: Sequence[Shard], report: Report | None = None
) -> Result:
    """What the job answers over these shards (at least one), as ``run_job`` in one process.

    Needs a session (``cluster.on_ray.session``). Raises what the first failing shard raised,
    ``StoreError`` for a run that the workers cannot see, ``ClusterError`` for a shard that took its
    worker with it time and again.
    """
    require_sight(shards[0].store)
    held = [ray.put(job)]
    cpus, under_way = standing().cpus, UnderWay(shards, report)
    limit = pieces_at_once(cpus)

    def partials() -> Iterator[ObjectRef]:
        for block in blocks(shards, most_tasks(cpus)):
            under_way.make_room(limit)
            partial, receipt = map_block.remote(held, block)  # pyright: ignore[reportGeneralTypeIssues]
            under_way.blocks[receipt] = block[0].where
            yield partial

    try:
        whole = merge_all(partials(), lambda a, b: merge_two.remote(held, a, b))
        under_way.make_room(1)
        return job.finish(answer(whole, "the merged result"))
    finally:
        under_way.cancel()


def blocks(shards: Sequence[Shard], most: int) -> Iterator[Sequence[Shard]]:
    """The shards in order, in at most so many pieces of a power of two, but for the last."""
    size = block_size(len(shards), most)
    return (shards[start : start + size] for start in range(0, len(shards), size))


class UnderWay:
    """Blocks of shards that are with workers, each by the receipt that will tell of its end."""

    def __init__(self, shards: Sequence[Shard], report: Report | None) -> None:
        self.blocks: dict[ObjectRef, str] = {}
        """The first shard of each, for messages."""
        self.report = report
        self.rows, self.num_rows = 0, sum(shard.rows for shard in shards)

    def make_room(self, limit: int) -> None:
        """Wait until fewer than ``limit`` are under way; raises what a shard raised."""
        while len(self.blocks) >= limit:
            for receipt in ray.wait(list(self.blocks))[0]:
                self.rows += answer(receipt, self.blocks.pop(receipt))
                if self.report:
                    self.report(self.rows, self.num_rows)

    def cancel(self) -> None:
        """Leave off what is still under way; merges that wait for it fall with it.

        A task that its worker is just taking up does not hear that it is cancelled, so those that
        have not ended are told again.
        """
        left = list(self.blocks)
        for _ in range(TELLINGS):
            if not left:
                break
            for receipt in left:
                ray.cancel(receipt)
            _, left = ray.wait(left, num_returns=len(left), timeout=HEARD_SECONDS)


@ray.remote(num_returns=2, max_retries=MAX_LOSSES)
def map_block(held: list[ObjectRef], block: Sequence[Shard]) -> tuple[Any, int]:
    """A partial result, and a receipt that is small enough for the driver: its rows."""
    listen()
    job = unpacked(held[0])
    partial = merge_all(map(job.map_shard, block), job.merge)
    return partial, sum(shard.rows for shard in block)


def listen() -> None:
    """Be open to SIGINT, by which Ray cancels a task: a cluster that a shell has started in the
    background (``nohup … &``) ignores it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@ray.remote(max_retries=MAX_LOSSES)
def merge_two(held: list[ObjectRef], a: Any, b: Any) -> Any:
    return unpacked(held[0]).merge(a, b)


@lru_cache(maxsize=1)
def unpacked(job: ObjectRef) -> Job:
    """The job, once in each worker process: what it reads besides shards is read once."""
    return ray.get(job)


def answer(reference: ObjectRef, where: str) -> Any:
    """What a task made; raises what it raised, or ``ClusterError`` if it was lost for good."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        problem = f"was lost with its worker, {MAX_LOSSES + 1} times: {first_line(error)}"
        raise ClusterError(where, problem, "See whether workers run out of memory") from error


def require_sight(store: Store) -> None:
    """Raises ``StoreError`` for a run that is not where every worker can read it."""
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
    looks = [sees.options(scheduling_strategy=where).remote(store) for where in on]
    pairs = zip(nodes, looks, strict=True)
    blind = {node["NodeName"] for node, look in pairs if not answer(look, store.uri)}
    if blind:
        remedy = "Put the run on a folder that all nodes share, or on s3://"
        raise StoreError(store.uri, f"cannot be seen from {', '.join(sorted(blind))}", remedy)


@ray.remote(num_cpus=0, max_retries=MAX_LOSSES)
def sees(store: Store) -> bool:
    return store.exists(START)
