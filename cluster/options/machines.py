"""Where a command computes: on this machine, or on the workers of a Ray cluster.

A command uses a cluster if ``--ray`` asks for one or RAY_ADDRESS names one, as Ray sets it within a
submitted job; ``--no-ray`` keeps the work on this machine.
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
from cluster.local.work_pool import in_processes
from cluster.on_ray.session import connect

Partial = TypeVar("Partial")
Result = TypeVar("Result")


class RunJob(Protocol):
    """Runs a job over one or more shards and reports rows done and rows in all."""

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
    """Yield the machines that the arguments of ``add_ray`` ask for.

    Raises ``ClusterError`` if a cluster is asked for and Ray is not installed or cannot be joined.
    """
    address = cluster_address(arguments.ray, arguments.no_ray, os.environ.get("RAY_ADDRESS", ""))
    if address is None:
        yield HERE
        return
    with connect(address):
        from cluster.on_ray import mapreduce, model_actors
        from cluster.on_ray.room import wait_for_cores

        wait_for_cores()
        yield Machines(mapreduce.run_job, model_actors.sweep)


def retraining_sweep(arguments: argparse.Namespace, on: Machines, where: str) -> Sweep:
    """Return what trains again: processes of ``--workers`` on this machine, or the cluster.

    ``where`` names the run in errors.
    """
    return sweep_of(on, arguments.workers, where)


def sweep_of(on: Machines, workers: int, where: str) -> Sweep:
    """Like ``retraining_sweep``, for a number of workers."""
    return in_processes(workers, where) if on is HERE else on.sweep


def path_sweep(on: Machines, workers: int, where: str) -> Sweep | None:
    """Return what computes path influence by segment; None: this process.

    ``where`` names the run in errors.
    """
    if on is not HERE:
        return on.sweep
    return in_processes(workers, where) if workers > 1 else None


def cluster_address(asked: str | None, no_ray: bool, environment: str) -> str | None:
    """The address to connect to, "" for any running cluster, None to stay on this machine."""
    if no_ray or (asked is None and not environment):
        return None
    return asked or environment
