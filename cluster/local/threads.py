"""Run jobs on this machine: several shards at a time, each on a thread of this process.

Reading Parquet and summing arrays release Python's lock for most of the time, so threads are
enough. Partial results are merged in the order of the shards, whichever finishes first, so that
sums of floats do not depend on timing.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from analysis.jobs.job import Job, merge_all
from analysis.run.scan import Shard
from capture.device import available_cores

Partial = TypeVar("Partial")
Result = TypeVar("Result")

Report = Callable[[int, int], None]
"""Called after every shard with rows done and rows in all."""


def run_job(
    job: Job[Partial, Result],
    shards: Sequence[Shard],
    report: Report | None = None,
    *,
    threads: int | None = None,
) -> Result:
    """Run a job over one or more shards and return its result.

    ``threads`` defaults to one for each core, at most 8. Memory holds the working set of that many
    shards, as many partials that wait to be merged, and log₂ n merged ones. What a shard raises
    ends the job.
    """
    num_rows = sum(shard.rows for shard in shards)
    threads = threads or min(8, len(shards), available_cores())

    def partials(pool: ThreadPoolExecutor) -> Iterator[Partial]:
        done = 0
        for shard, partial in zip(
            shards, map_in_order(pool, job.map_shard, shards, threads), strict=True
        ):
            yield partial
            done += shard.rows
            if report:
                report(done, num_rows)

    pool = ThreadPoolExecutor(threads)
    try:
        return job.finish(merge_all(partials(pool), job.merge))
    finally:
        pool.shutdown(cancel_futures=True)


def map_in_order(
    pool: ThreadPoolExecutor, function: Callable, items: Iterable, threads: int
) -> Iterator:
    """Yield results in the order of the items; at most 2 · ``threads`` are running or waiting."""
    rest = iter(items)
    waiting: deque[Future] = deque(
        pool.submit(function, item) for item in islice(rest, 2 * threads)
    )
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
        yield result
