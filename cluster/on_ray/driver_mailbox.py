"""The mailbox between a group of workers and the driver, and the function that each worker runs.

The mailbox is an actor on the driver's node. Rank 0 posts its progress there; the driver drains it
and shows it. When the driver wants the group to stop, the answer to the next post says so.
"""

import os
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass

import ray
import torch
from ray.actor import ActorHandle

from capture.config.settings import Config
from capture.errors import CorpusError
from capture.process_group import DistributedGroup
from capture.training.loop import Event, Progress, capture_run
from cluster.local.signals import Stopped
from cluster.terminal.progress import GroupRestart

SECONDS_BETWEEN_POSTS = 0.5
"""Progress is posted at most this often; other events are posted at once."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every worker of a group receives."""

    config: Config
    folder: str
    """The driver's working directory, to which the configuration's relative paths refer; or empty.
    """
    group: str
    """Holder of the run's lease; stays the same when the group is started again."""
    resume: bool
    overwrite: bool
    mailbox: ActorHandle


@dataclass(frozen=True)
class Attempt:
    """One start of the group, the first or after a loss of workers."""

    number: int
    """Attempt number, starting at 1."""
    trained: bool
    """Whether an earlier attempt has trained a step."""
    stopping: bool
    """Whether the driver has asked the group to stop."""


class Mailbox:
    """Events from rank 0 to the driver; Ray runs it as an actor."""

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.events: deque[Event | GroupRestart] = deque()
        self.attempts = 0
        self.trained = False
        self.stopping = False

    def start(self) -> Attempt:
        """Count a start of the group; rank 0 calls this once at each start."""
        if self.attempts:
            self.events.append(GroupRestart(self.attempts, self.max_failures))
        self.attempts += 1
        return Attempt(self.attempts, self.trained, self.stopping)

    def post(self, event: Event) -> bool:
        """Add an event; returns whether the group should stop."""
        self.trained |= isinstance(event, Progress)
        self.events.append(event)
        return self.stopping

    def drain(self) -> list[Event | GroupRestart]:
        """Return and remove all events, oldest first."""
        events = list(self.events)
        self.events.clear()
        return events

    def stop(self) -> None:
        """Have the group stop at its next post."""
        self.stopping = True


class MailboxReporter:
    """Rank 0's report: posts events to the mailbox, and stops the worker when the driver asks.

    Raises ``Stopped`` at the first event after the answer to stop has arrived.
    """

    def __init__(self, mailbox: ActorHandle) -> None:
        self.mailbox = mailbox
        self.answer: ray.ObjectRef | None = None
        self.last = 0.0

    def __call__(self, event: Event) -> None:
        if self.answer and ray.wait([self.answer], timeout=0)[0] and ray.get(self.answer):
            raise Stopped(signal.SIGTERM)
        if isinstance(event, Progress) and event.steps_done < event.num_steps:
            if time.monotonic() - self.last < SECONDS_BETWEEN_POSTS:
                return
            self.last = time.monotonic()
        self.answer = self.mailbox.post.remote(event)


def run_worker(given: dict[str, Task]) -> None:
    """Train as one worker of the process group that Ray Train set up. Raises as ``capture_run``."""
    task = given["task"]
    if os.path.isdir(task.folder):
        os.chdir(task.folder)
    torch.set_num_threads(task.config.workers.cpus)
    device = torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    group = DistributedGroup(device)
    start = vars(ray.get(task.mailbox.start.remote())) if group.rank == 0 else None
    attempt = Attempt(**group.all_gather_object(start)[0])
    if attempt.stopping:
        raise Stopped(signal.SIGTERM)
    try:
        capture_run(
            task.config,
            MailboxReporter(task.mailbox),
            resume=task.resume or attempt.number > 1,
            overwrite=task.overwrite and not attempt.trained,
            group=group,
            owner=f"{task.group}.{attempt.number}",
        )
    except CorpusError as error:
        problem = f"{error.problem} (on node {socket.gethostname()}; every node needs the text)"
        raise CorpusError(error.where, problem, error.remedy) from error
