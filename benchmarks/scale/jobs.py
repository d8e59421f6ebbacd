"""Measure jobs on Ray: speed-up by a second worker, cost per shard, memory of the driver.

*Efficiency*: the attribution job over synthetic shards of the study's shape (two million rows
each). In every round it runs in one thread of this process, on a cluster of one node and on a
cluster of two nodes, each of one core. In addition, half of it runs in one process, and in two
independent processes at once. The efficiency of two workers is half of their speed-up over one. The
*ceiling* is what the machine allows: the time of one process alone over that of two at once.

*Growth*: a job that counts rows over 10, 100 and 1,000 shards on two workers, each in a driver of
its own. It reports seconds per shard, and the peak of the driver's resident memory beyond that
after the first ten shards.

Clusters start on this machine before the clock does, and every measured process first works on
some shards untimed.
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
    OutlierRows,
    random_rows,
    synthetic_rows,
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
SAMPLES_PER_SECOND = 200
"""How often the driver's memory is sampled."""
WARMUP = 8
"""Number of untimed shards."""
LAYOUT = Layout({"layers.0.linear1.weight": (WIDTH, WIDTH)})
"""Layout for the job that counts rows; its partials have 0.3 MB."""


@dataclass(frozen=True)
class Efficiency:
    """Times of the attribution job, one sample per round."""

    rows: int
    shards: int
    local_seconds: list[float]
    """One thread of this process, without Ray."""
    one_worker_seconds: list[float]
    two_workers_seconds: list[float]
    half_alone_seconds: list[float]
    """Half of the shards in one thread of a process of its own, without Ray."""
    halves_at_once_seconds: list[float]
    """Half of the shards in each of two such processes at once."""
    joining_seconds: list[float]
    """Time until a second node has joined the cluster."""

    @property
    def figures(self) -> dict[str, float]:
        """Efficiency and ceiling: medians of the ratios within a round; 1 means twice as fast."""
        workers = zip(self.one_worker_seconds, self.two_workers_seconds, strict=True)
        halves = zip(self.half_alone_seconds, self.halves_at_once_seconds, strict=True)
        return {
            "two_workers": statistics.median(one / two / 2 for one, two in workers),
            "ceiling": statistics.median(alone / both for alone, both in halves),
        }


@dataclass(frozen=True)
class Growth:
    """Time of the counting job over this many shards, and memory of its driver."""

    shards: int
    seconds: float
    driver_bytes: int
    """Peak of the driver's resident memory beyond that after ten shards."""


def main() -> None:
    arguments = parse_arguments()
    num_shards, rounds = (2, 1) if arguments.quick else (arguments.shards, arguments.rounds)
    numbers = [10, 100] if arguments.quick else [10, 100, 1000]
    with tempfile.TemporaryDirectory() as folder:
        outliers = synthetic_rows(folder, num_shards * STEPS * BATCH * KEPT)
        Store(folder).put(
            START, b""
        )  # workers look for this file to see that they can read the run
        efficiency = measure_efficiency(outliers, rounds)
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
        values = {"efficiency": asdict(efficiency) | efficiency.figures}
        values |= {"growth": [asdict(found) for found in growth], "machine": machine()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(values, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--shards", type=int, default=148, help="shards of two million rows; the study has 148"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few shards, to test the script")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results to PATH")
    return parser.parse_args()


@contextmanager
def workers(number: int) -> Iterator[float]:
    """Start a cluster of one-core nodes on this machine and connect this process to it.

    Yields the seconds that the nodes after the first took to join.
    """
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


def measure_efficiency(outliers: OutlierRows, rounds: int) -> Efficiency:
    """Time all variants; each sample on Ray has a new cluster, so that none share the cores."""
    job, shards = outliers.job, outliers.shards
    half = shards[: len(shards) // 2]
    found = Efficiency(outliers.rows, len(shards), [], [], [], [], [], [])
    with one_thread_process() as first, one_thread_process() as second:
        for _ in range(rounds):
            found.local_seconds.append(
                seconds(lambda some: local.run_job(job, some, threads=1), shards)
            )
            for processes, samples in (
                ([first], found.half_alone_seconds),
                ([first, second], found.halves_at_once_seconds),
            ):
                samples.append(seconds(partial(run_at_once, processes, job), half))
            for number, samples in (1, found.one_worker_seconds), (2, found.two_workers_seconds):
                with workers(number) as joining:
                    samples.append(seconds(lambda some: run_job(job, some), shards))
                found.joining_seconds.extend([joining] * (number - 1))
    return found


@contextmanager
def one_thread_process() -> Iterator[Pool]:
    """Start a pool of one process with one thread, like a worker."""
    with (
        mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}),
        multiprocessing.get_context("spawn").Pool(1) as pool,
    ):
        yield pool


def run_at_once(processes: Sequence[Pool], job: Job, shards: Sequence[Shard]) -> None:
    """Run the whole job in each of the processes at once; they share nothing."""
    results = [process.apply_async(run_locally, (job, shards)) for process in processes]
    for result in results:
        result.get()


def run_locally(job: Job, shards: Sequence[Shard]) -> None:
    """Run the job in one thread; returns nothing, so that no result travels between processes."""
    local.run_job(job, shards, threads=1)


def seconds(run: Callable[[Sequence[Shard]], object], shards: Sequence[Shard]) -> float:
    """Return the seconds for all shards, after an untimed run over a few."""
    run(shards[:WARMUP])
    start = time.perf_counter()
    run(shards)
    return time.perf_counter() - start


# --- growth ---------------------------------------------------------------------------------------


def in_own_process(folder: str, num_shards: int) -> Growth:
    """Measure in a new driver process, whose memory nothing else has used."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measure_growth, (folder, num_shards))


def measure_growth(folder: str, num_shards: int) -> Growth:
    shards, job = small_shards(folder, num_shards), CountRows(RowReader(LAYOUT, DATUMS, WINDOW))
    Store(folder).put(START, b"")
    with workers(2):
        run_job(job, shards[:10])
        before = resident_bytes()
        with watch_memory() as highest:
            start = time.perf_counter()
            found = run_job(job, shards)
            took = time.perf_counter() - start
        assert found.sum() == sum(shard.rows for shard in shards)
        return Growth(num_shards, took, max(highest) - before)


def small_shards(folder: str, number: int) -> list[Shard]:
    """Write shards of twenty rows each."""
    rows = random_rows(LAYOUT, 0, np.random.default_rng(0)).slice(0, 20)
    return [write_shard(folder, shard, rows) for shard in range(number)]


@contextmanager
def watch_memory() -> Iterator[list[int]]:
    """Sample resident memory in a thread; yields a list whose one element is the peak so far."""
    highest, done = [resident_bytes()], threading.Event()

    def sample() -> None:
        while not done.wait(1 / SAMPLES_PER_SECOND):
            highest[0] = max(highest[0], resident_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield highest
    finally:
        done.set()
        thread.join()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
