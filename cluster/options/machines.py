"""Where a command's work runs: on this machine, or on the workers of a Ray cluster.

On a cluster if ``--ray`` says so or RAY_ADDRESS names one, as it does within a submitted job;
``--no-ray`` keeps it here.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from analysis.jobs.job import Job
from analysis.jobs.sweep import Sweep, in_turn
from analysis.run.scan import Shard
from cluster.local import threads as local
from cluster.local.threads import Report
from cluster.on_ray.session import connect

Partial = TypeVar("Partial")
Result = TypeVar("Result")


class RunJob(Protocol):
    """Carries a job out over some shards (at least one), telling how far it is."""

    def __call__(
        self, job: Job[Partial, Result], shards: Sequence[Shard], report: Report | None = None
    ) -> Result: ...


@dataclass(frozen=True)
class Machines:
    run_job: RunJob
    """Reads shards."""
    sweep: Sweep
    """Runs the model."""


HERE = Machines(local.run_job, in_turn)


@contextmanager
def machines(arguments: argparse.Namespace) -> Iterator[Machines]:
    """What a command's arguments ask for (``add_ray``); raises ``ClusterError`` without Ray."""
    address = wanted(arguments.ray, arguments.no_ray, os.environ.get("RAY_ADDRESS", ""))
    if address is None:
        yield HERE
        return
    with connect(address):
        from cluster.on_ray import mapreduce
        from cluster.on_ray import model_actors as holders

        yield Machines(mapreduce.run_job, holders.sweep)


def wanted(asked: str | None, no_ray: bool, environment: str) -> str | None:
    """The address to connect to, "" for whatever is there; None to stay on this machine."""
    if no_ray or (asked is None and not environment):
        return None
    return asked or environment
