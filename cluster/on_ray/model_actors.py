"""Run a model over many items on Ray, with actors that each hold a copy of the model.

An actor has a GPU of its own if the cluster has any, else a core. The model is sent to the cluster
once. Results come in the order of the items, however fast each actor is. A lost actor is replaced
and its item is tried again, up to ``policy.MAX_LOSSES`` times. What the work itself raises arrives
with its own type and ends the sweep.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from analysis.jobs.sweep import Work
from capture.errors import ClusterError
from cluster.on_ray.policy import Decision, PieceQueue, after_failure
from cluster.on_ray.session import cluster_size, first_line

Item = TypeVar("Item")
Done = TypeVar("Done")
LOG = logging.getLogger(__name__)
START_WARNING_SECONDS = 30.0
"""A warning is logged if no actor has started for this long."""
LEAD_PER_ACTOR = 4
"""Items per actor that may finish ahead of the first unfinished one."""


def sweep(work: Work[Item, Done], items: Sequence[Item]) -> Iterator[Done]:
    """Apply the work to all items, as a ``Sweep``; needs a session (``cluster.on_ray.session``).

    Raises what the work raised, or ``ClusterError`` for an item whose actor was lost on every
    attempt. The driver holds at most ``LEAD_PER_ACTOR`` results per actor.
    """
    has = cluster_size()
    number = min(len(items), has.gpus or max(1, has.cpus))
    actors = ModelActors(work, number, gpu=has.gpus > 0)
    queue = PieceQueue(len(items), LEAD_PER_ACTOR * number)
    finished: dict[int, Done] = {}
    try:
        while queue.num_delivered < len(items):
            while actors.idle and (item := queue.take()) is not None:
                actors.assign(item, items[item])
            for item, result in actors.wait():
                if isinstance(result, RayError):
                    handle_failure(queue, item, result)
                    continue
                finished[item] = result
                for ready in queue.done(item):
                    yield finished.pop(ready)
    finally:
        actors.end()


def handle_failure(queue: PieceQueue, item: int, error: RayError) -> None:
    """Queue a failed item for another attempt, or raise."""
    raised = isinstance(error, RayTaskError)  # by the work itself; else the actor was lost
    if queue.failed(item, lost=not raised) is Decision.RAISE:
        if raised:
            raise error.cause from error
        problem = f"was lost with its worker, {queue.losses[item]} times: {first_line(error)}"
        raise ClusterError(f"item {item}", problem, "Check whether workers run out of memory")


@ray.remote(num_cpus=1)
class ModelActor:
    """A copy of the model on one worker."""

    def __init__(self, work: Work, device: str) -> None:
        self.work = work.to(device)

    @ray.method
    def ready(self) -> None:
        """Return once the model is loaded."""

    @ray.method
    def do(self, item: Any) -> Any:
        return self.work(item)


class ModelActors:
    """A set of actors: starting, idle, or busy with an item."""

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
        """Start an actor. It becomes idle once it has the model, which a full cluster can delay."""
        device = "cuda" if self.gpu else "cpu"
        actor = ModelActor.options(num_gpus=int(self.gpu)).remote(self.work, device)  # pyright: ignore
        self.starting[actor.ready.remote()] = actor

    def assign(self, item: int, value: object) -> None:
        """Give an item to an idle actor."""
        actor = self.idle.pop()
        self.busy[actor.do.remote(value)] = actor, item

    def wait(self) -> Iterator[tuple[int, Any]]:
        """Wait for a change; yields items that ended, each with its result or the error."""
        pending = [*self.busy, *self.starting]
        ended, _ = ray.wait(pending, timeout=None if self.busy else START_WARNING_SECONDS)
        if not ended:
            LOG.warning("waiting for a worker: for a core (and a GPU) to be free, or for the model")
            ended, _ = ray.wait(pending)
        for reference in ended:
            if reference in self.starting:
                self.handle_start(reference)
                continue
            actor, item = self.busy.pop(reference)
            try:
                result = ray.get(reference)
            except RayError as error:
                result = error
            if isinstance(result, RayError) and not isinstance(result, RayTaskError):
                ray.kill(actor)
                self.start()
            else:
                self.idle.append(actor)
            yield item, result

    def handle_start(self, reference: ObjectRef) -> None:
        """Mark an actor as idle, or replace it; raises ``ClusterError`` if too many failed."""
        actor = self.starting.pop(reference)
        try:
            ray.get(reference)
            self.idle.append(actor)
        except RayError as error:
            self.failed_starts += 1
            if after_failure(self.failed_starts, lost=True) is Decision.RAISE:
                problem = f"cannot take the model: {first_line(error)}"
                raise ClusterError("workers", problem, "See the cluster's logs") from error
            self.start()

    def end(self) -> None:
        """Kill all actors, busy ones too. A session that has ended took its actors with it."""
        if not ray.is_initialized():
            return  # otherwise ray.kill would start a new cluster
        for actor in (
            *self.starting.values(),
            *self.idle,
            *(one for one, _ in self.busy.values()),
        ):
            ray.kill(actor)
