"""Jobs in a loop: one shard after the other, in this process."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from analysis.jobs import Job, merge_all
from analysis.scan import Shard

Partial = TypeVar("Partial")
Result = TypeVar("Result")

Report = Callable[[int, int], None]
"""Told after every shard: rows done, rows in all."""


def run_job(
    job: Job[Partial, Result], shards: Sequence[Shard], report: Report | None = None
) -> Result:
    """What the job answers over these shards (at least one). Holds a batch and log₂ n partials."""
    num_rows = sum(shard.rows for shard in shards)

    def partials() -> Iterator[Partial]:
        done = 0
        for shard in shards:
            yield job.map_shard(shard)
            done += shard.rows
            if report:
                report(done, num_rows)

    return job.finish(merge_all(partials(), job.merge))
