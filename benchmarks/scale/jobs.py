"""What jobs on Ray gain and cost: one worker and two, many shards, and the driver's memory.

*Efficiency*: the attribution job over made-up shards of the study's shape (two million rows each).
In every round by one thread of this process, by a cluster of one node and by one of two, of a core
each, and half of it by one process and by two at once that share nothing. The efficiency of two
workers is half of how many times faster they are than one, the *ceiling* what the machine itself
allows: one process alone over two. *Growth*: a job that counts rows over 10, 100 and 1,000 shards
on two workers, each number in a driver of its own: seconds a shard, and by how much the driver's
resident memory rose at its highest over the first shards'.

Clusters are made on this machine before anything is timed; whoever is timed has done some shards
before.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from unittest import mock

import numpy as np
import ray
from ray.cluster_utils import Cluster

from analysis.attribution.collect import CountRows
from analysis.attribution.outlier_weights import RowReader
from analysis.jobs.job import Job
from analysis.run.scan import Shard
from benchmarks.attribution import (
    BATCH,
    DATUMS,
    KEPT,
    STEPS,
    WIDTH,
    WINDOW,
    Material,
    made_up_rows,
    synthetic,
    write_shard,
)
from benchmarks.harness.report import machine
from capture.format.markers import START
from capture.gradients.layout import Layout
from capture.store.store import Store
from cluster.local import threads as local
from cluster.on_ray.mapreduce import run_job
from cluster.on_ray.session import connect

OBJECT_STORE_BYTES = 2 * 2**30
LOOKS_A_SECOND = 200
WARMUP = 8
"""Shards."""
LAYOUT = Layout({"layers.0.linear1.weight": (WIDTH, WIDTH)})
"""Of the job that counts rows: a partial of 0.3 MB."""


@dataclass(frozen=True)
class Efficiency:
    rows: int
    shards: int
    local_seconds: list[float]
    """One thread, no Ray; a sample a round, as below."""
    one_worker_seconds: list[float]
    two_workers_seconds: list[float]
    half_alone_seconds: list[float]
    """Half of the shards, one thread of a process of its own, no Ray."""
    halves_at_once_seconds: list[float]
    """Two such, side by side."""
    joining_seconds: list[float]
    """Until a second node has joined the cluster."""

    @property
    def figures(self) -> dict[str, float]:
        """The median over the rounds of each round's own ratio; 1 is twice as fast as one."""
        workers = zip(self.one_worker_seconds, self.two_workers_seconds, strict=True)
        halves = zip(self.half_alone_seconds, self.halves_at_once_seconds, strict=True)
        return {
            "two_workers": statistics.median(one / two / 2 for one, two in workers),
            "ceiling": statistics.median(alone / both for alone, both in halves),
        }


@dataclass(frozen=True)
class Growth:
    shards: int
    seconds: float
    driver_bytes: int
    """Rise of the driver's resident memory at its highest, over what it was after ten shards."""


def main() -> None:
    arguments = parse_arguments()
    num_shards, rounds = (2, 1) if arguments.quick else (arguments.shards, arguments.rounds)
    numbers = [10, 100] if arguments.quick else [10, 100, 1000]
    with tempfile.TemporaryDirectory() as folder:
        material = synthetic(folder, num_shards * STEPS * BATCH * KEPT)
        Store(folder).put(START, b"")  # by which workers see that they see the run
        efficiency = measure_efficiency(material, rounds)
        print(
            f"{efficiency.rows:,} rows in {efficiency.shards} shards: "
            f"{statistics.median(efficiency.local_seconds):.2f} s here, "
            f"{statistics.median(efficiency.one_worker_seconds):.2f} s on one worker, "
            f"{statistics.median(efficiency.two_workers_seconds):.2f} s on two; "
            "efficiency {two_workers:.2f}, ceiling {ceiling:.2f}".format(**efficiency.figures)
        )
        growth = [in_own_process(f"{folder}/small", number) for number in numbers]
    for found in growth:
        print(
            f"{found.shards:>5} shards: {1000 * found.seconds / found.shards:.1f} ms a shard, "
            f"driver + {found.driver_bytes / 2**20:.1f} MiB"
        )
    if arguments.json:
        told = {"efficiency": asdict(efficiency) | efficiency.figures}
        told |= {"growth": [asdict(found) for found in growth], "machine": machine()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--shards", type=int, default=148, help="of two million rows; 148 as in the study"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="does everything work?")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")
    return parser.parse_args()


@contextmanager
def workers(number: int) -> Iterator[float]:
    """A cluster of so many nodes of one core on this machine, joined by this process; how long the
    nodes after the first took to join."""
    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    path = str(Path(__file__).parents[2])
    with mock.patch.dict(os.environ, {"PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"}):
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            start = time.perf_counter()
            for _ in range(number - 1):
                cluster.add_node(**node)
            cluster.wait_for_nodes()
            took = time.perf_counter() - start
            with connect(str(cluster.address)):
                yield took
        finally:
            ray.shutdown()
            cluster.shutdown()


# --- efficiency -----------------------------------------------------------------------------------


def measure_efficiency(material: Material, rounds: int) -> Efficiency:
    """A cluster at a time, made anew for each sample: two at once would share the cores."""
    job, shards = material.job, material.shards
    half = shards[: len(shards) // 2]
    found = Efficiency(material.rows, len(shards), [], [], [], [], [], [])
    with process() as first, process() as second:
        for _ in range(rounds):
            found.local_seconds.append(
                seconds(lambda some: local.run_job(job, some, threads=1), shards)
            )
            for those, samples in (
                ([first], found.half_alone_seconds),
                ([first, second], found.halves_at_once_seconds),
            ):
                samples.append(seconds(partial(at_once, those, job), half))
            for number, samples in (1, found.one_worker_seconds), (2, found.two_workers_seconds):
                with workers(number) as joining:
                    samples.append(seconds(lambda some: run_job(job, some), shards))
                found.joining_seconds.extend([joining] * (number - 1))
    return found


@contextmanager
def process() -> Iterator[Pool]:
    """One of one thread, like a worker."""
    with (
        mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}),
        multiprocessing.get_context("spawn").Pool(1) as pool,
    ):
        yield pool


def at_once(processes: Sequence[Pool], job: Job, shards: Sequence[Shard]) -> None:
    """The same job by each of them, side by side, with nothing in common."""
    results = [process.apply_async(by_itself, (job, shards)) for process in processes]
    for result in results:
        result.get()


def by_itself(job: Job, shards: Sequence[Shard]) -> None:
    local.run_job(job, shards, threads=1)


def seconds(run: Callable[[Sequence[Shard]], object], shards: Sequence[Shard]) -> float:
    """How long all of them take, after a few for nothing."""
    run(shards[:WARMUP])
    start = time.perf_counter()
    run(shards)
    return time.perf_counter() - start


# --- growth ---------------------------------------------------------------------------------------


def in_own_process(folder: str, num_shards: int) -> Growth:
    """Measured by a fresh driver, whose memory nothing else has used."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measure_growth, (folder, num_shards))


def measure_growth(folder: str, num_shards: int) -> Growth:
    shards, job = small_shards(folder, num_shards), CountRows(RowReader(LAYOUT, DATUMS, WINDOW))
    Store(folder).put(START, b"")
    with workers(2):
        run_job(job, shards[:10])
        before = resident_bytes()
        with highest_resident() as highest:
            start = time.perf_counter()
            found = run_job(job, shards)
            took = time.perf_counter() - start
        assert found.sum() == sum(shard.rows for shard in shards)
        return Growth(num_shards, took, max(highest) - before)


def small_shards(folder: str, number: int) -> list[Shard]:
    """Twenty rows each."""
    rows = made_up_rows(LAYOUT, 0, np.random.default_rng(0)).slice(0, 20)
    return [write_shard(folder, place, rows) for place in range(number)]


@contextmanager
def highest_resident() -> Iterator[list[int]]:
    """Resident memory while this lasts, looked at now and then."""
    looks, over = [resident_bytes()], threading.Event()

    def look() -> None:
        while not over.wait(1 / LOOKS_A_SECOND):
            looks[0] = max(looks[0], resident_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield looks
    finally:
        over.set()
        thread.join()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
