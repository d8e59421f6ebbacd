"""Work that takes a model, on Ray: actors that each hold a copy of it, and items handed to them.

An actor has a GPU of its own where the cluster has any, else a core. The model is sent to the
cluster once. Results come in the order of the items, however fast each actor is. An actor that is
lost is replaced, and its item done again by whoever is free, some times; what the work itself
raises arrives as it was raised, and ends it.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from analysis.jobs.sweep import Work
from capture.errors import ClusterError
from cluster.on_ray.policy import Board, Decision, after_failure
from cluster.on_ray.session import first_line, standing

Item = TypeVar("Item")
Done = TypeVar("Done")
LOG = logging.getLogger(__name__)
ROOM_SECONDS = 30.0
"""For an actor to begin, before it is said that none does."""
LEAD = 4
"""Items a holder that may be made before the first one missing."""


def sweep(work: Work[Item, Done], items: Sequence[Item]) -> Iterator[Done]:
    """As ``analysis.jobs.sweep`` has it; needs a session (``cluster.on_ray.session``).

    Raises what the work raised, or ``ClusterError`` for an item that took its actor with it time
    and again. The driver keeps ``LEAD`` results a holder at most.
    """
    has = standing()
    number = min(len(items), has.gpus or max(1, has.cpus))
    holders, board = Holders(work, number, gpu=has.gpus > 0), Board(len(items), LEAD * number)
    made: dict[int, Done] = {}
    try:
        while board.handed_on < len(items):
            while holders.idle and (item := board.take()) is not None:
                holders.give(item, items[item])
            for item, result in holders.wait():
                if isinstance(result, RayError):
                    settle(board, item, result)
                    continue
                made[item] = result
                for ready in board.done(item):
                    yield made.pop(ready)
    finally:
        holders.end()


def settle(board: Board, item: int, error: RayError) -> None:
    """Have a failed item done again, or raise."""
    told = isinstance(error, RayTaskError)
    if board.failed(item, lost=not told) is Decision.RAISE:
        if told:
            raise error.cause from error
        problem = f"was lost with its worker, {board.losses[item]} times: {first_line(error)}"
        raise ClusterError(f"item {item}", problem, "See whether workers run out of memory")


@ray.remote(num_cpus=1)
class Holder:
    """Holds the work."""

    def __init__(self, work: Work, device: str) -> None:
        self.work = work.to(device)

    @ray.method
    def ready(self) -> None:
        """Returns once the work is held."""

    @ray.method
    def do(self, item: Any) -> Any:
        return self.work(item)


class Holders:
    """Some actors: those that start, those that wait for an item, those that have one."""

    def __init__(self, work: Work, number: int, *, gpu: bool) -> None:
        self.work = ray.put(work)
        self.gpu = gpu
        self.starting: dict[ObjectRef, Any] = {}
        self.idle: list[Any] = []
        self.busy: dict[ObjectRef, tuple[Any, int]] = {}
        self.failed_starts = 0
        for _ in range(number):
            self.start()

    def start(self) -> None:
        """One more; it is idle once it holds the work, which may be never on a full cluster."""
        device = "cuda" if self.gpu else "cpu"
        holder = Holder.options(num_gpus=int(self.gpu)).remote(self.work, device)  # pyright: ignore
        self.starting[holder.ready.remote()] = holder

    def give(self, item: int, value: object) -> None:
        """Hand an item to one that is idle."""
        holder = self.idle.pop()
        self.busy[holder.do.remote(value)] = holder, item

    def wait(self) -> Iterator[tuple[int, Any]]:
        """Until something happens; items that came to an end, with the result or what failed."""
        under_way = [*self.busy, *self.starting]
        ended, _ = ray.wait(under_way, timeout=None if self.busy else ROOM_SECONDS)
        if not ended:
            LOG.warning("waiting for a worker: for a core (and a GPU) to be free, or for the model")
            ended, _ = ray.wait(under_way)
        for reference in ended:
            if reference in self.starting:
                self.started(reference)
                continue
            holder, item = self.busy.pop(reference)
            try:
                result = ray.get(reference)
            except RayError as error:
                result = error
            if isinstance(result, RayError) and not isinstance(result, RayTaskError):
                ray.kill(holder)
                self.start()
            else:
                self.idle.append(holder)
            yield item, result

    def started(self, reference: ObjectRef) -> None:
        """One is ready, or could not start; raises ``ClusterError`` when that happens too often."""
        holder = self.starting.pop(reference)
        try:
            ray.get(reference)
            self.idle.append(holder)
        except RayError as error:
            self.failed_starts += 1
            if after_failure(self.failed_starts, lost=True) is Decision.RAISE:
                problem = f"cannot take the model: {first_line(error)}"
                raise ClusterError("workers", problem, "See the cluster's logs") from error
            self.start()

    def end(self) -> None:
        """Let all go, what they are at included; they have gone with a session that has ended."""
        if not ray.is_initialized():
            return  # Ray would start a cluster of its own to kill them on
        for holder in (
            *self.starting.values(),
            *self.idle,
            *(one for one, _ in self.busy.values()),
        ):
            ray.kill(holder)
