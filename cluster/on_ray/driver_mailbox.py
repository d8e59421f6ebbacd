"""What a group of workers tells the driver, and what each worker does.

The desk is an actor beside the driver. The first worker leaves there what it reports; the driver
looks in and shows it. When the driver wants the group to end, whoever leaves something is told so.
"""

import os
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from ray.actor import ActorHandle

from capture.config.settings import Config
from capture.errors import CorpusError
from capture.process_group import Together
from capture.training.loop import Event, Progress, capture_run
from cluster.local.signals import Stopped
from cluster.terminal.progress import StartedAgain

SECONDS_BETWEEN_NEWS = 0.5
"""Progress is told no oftener; everything else is told at once."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all workers of a group are given."""

    config: Config
    folder: str
    """Where the driver is; relative paths of the configuration are meant from there."""
    group: str
    """Who holds the run's lease, however often the group is started."""
    resume: bool
    overwrite: bool
    desk: ActorHandle


@dataclass(frozen=True)
class Attempt:
    """The group's how-manieth start this is, from 1."""

    number: int
    begun: bool
    """Whether an earlier one trained."""
    ending: bool
    """Whether the driver has stopped meanwhile."""


class Desk:
    """Kept by Ray as an actor."""

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.news: deque[Event | StartedAgain] = deque()
        self.attempts = 0
        self.begun = False
        self.ending = False

    def start(self) -> Attempt:
        """Called by the first worker, once whenever the group is started."""
        if self.attempts:
            self.news.append(StartedAgain(self.attempts, self.max_failures))
        self.attempts += 1
        return Attempt(self.attempts, self.begun, self.ending)

    def tell(self, event: Event) -> bool:
        """Leave what happened; whether to end."""
        self.begun |= isinstance(event, Progress)
        self.news.append(event)
        return self.ending

    def hear(self) -> list[Event | StartedAgain]:
        """What was told since this was last asked."""
        told = list(self.news)
        self.news.clear()
        return told

    def end(self) -> None:
        self.ending = True


class Teller:
    """The first worker's report: tells the desk, and stops the worker when the driver ends."""

    def __init__(self, desk: ActorHandle) -> None:
        self.desk = desk
        self.answer: ray.ObjectRef | None = None
        self.last = 0.0

    def __call__(self, event: Event) -> None:
        if self.answer and ray.wait([self.answer], timeout=0)[0] and ray.get(self.answer):
            raise Stopped(signal.SIGTERM)
        if isinstance(event, Progress) and event.steps_done < event.num_steps:
            if time.monotonic() - self.last < SECONDS_BETWEEN_NEWS:
                return
            self.last = time.monotonic()
        self.answer = self.desk.tell.remote(event)


def work(given: dict[str, Task]) -> None:
    """One worker, within the process group that Ray Train has set up. Raises as ``capture_run``."""
    task = given["task"]
    if Path(task.folder).is_dir():
        os.chdir(task.folder)
    torch.set_num_threads(task.config.workers.cpus)
    device = torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    group = Together(device)
    start = vars(ray.get(task.desk.start.remote())) if group.rank == 0 else None
    attempt = Attempt(**group.gather(start)[0])
    if attempt.ending:
        raise Stopped(signal.SIGTERM)
    try:
        capture_run(
            task.config,
            Teller(task.desk),
            resume=task.resume or attempt.number > 1,
            overwrite=task.overwrite and not attempt.begun,
            group=group,
            owner=f"{task.group}.{attempt.number}",
        )
    except CorpusError as error:
        problem = f"{error.problem} (on node {socket.gethostname()}; every node needs the text)"
        raise CorpusError(error.where, problem, error.remedy) from error
