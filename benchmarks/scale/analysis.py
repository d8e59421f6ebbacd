"""Predict the cost of an attribution over a run's outlier shards. Pure functions.

Reading, requests and adding rows overlap on all cores. Then partials are merged in a tree of depth
log₂(shards). Meanwhile the driver handles one task after the other. A task takes a block of shards
and merges their partials itself, one after the other.
"""

import math
from dataclasses import dataclass

from benchmarks.scale.model import Assumed, Measured, datum_bytes, store_speed
from benchmarks.scale.workloads import Workload
from cluster.on_ray.policy import block_size, max_tasks


@dataclass(frozen=True, kw_only=True)
class AttributionCost:
    """Predicted times and sizes of an attribution over all outliers of a run."""

    shards: int
    depth: int
    """Depth of the merge tree."""
    reading_seconds: float
    request_seconds: float
    adding_seconds: float
    merging_seconds: float
    """Along the tree's longest path."""
    driver_seconds: float
    partial_bytes: float
    """Size of the last partial, which one process holds."""

    @property
    def seconds(self) -> float:
        overlapping = max(self.reading_seconds, self.request_seconds, self.adding_seconds)
        return max(overlapping + self.merging_seconds, self.driver_seconds)

    @property
    def bottleneck(self) -> str:
        """The longest part, which has to become faster for an earlier answer."""
        overlapping = {
            "reading": self.reading_seconds,
            "requests": self.request_seconds,
            "adding up": self.adding_seconds,
        }
        slowest = max(overlapping, key=overlapping.__getitem__)
        parts = {slowest: overlapping[slowest], "merge tree": self.merging_seconds}
        longest = max(parts, key=parts.__getitem__)
        return "driver" if self.driver_seconds >= sum(parts.values()) else longest


def predict_attribution(
    work: Workload, workers: int, gpus: int, measured: Measured, assumed: Assumed
) -> AttributionCost:
    """Predict an attribution over the shards of a capture by ``workers``, on the GPUs' nodes."""
    shards = work.segments * workers
    rows = float(work.datums) * work.outliers
    cores = gpus * assumed.cores_per_gpu
    size = datum_bytes(work, "outliers", measured) * work.datums
    depth = math.ceil(math.log2(shards)) if shards > 1 else 0
    block = block_size(shards, max_tasks(cores))
    tasks = math.ceil(shards / block)
    sizes = [partial_bytes(work, rows / shards * 2**level, assumed) for level in range(depth + 1)]
    # A task does the block / 2**level merges of a level one after the other; above the blocks the
    # merges of a level run in parallel, so the longest path has one merge per level.
    merged = sum(max(1.0, block / 2**level) * sizes[level] for level in range(1, depth + 1))
    adding = rows / measured.rows_per_core_second + shards * measured.shard_seconds
    return AttributionCost(
        shards=shards,
        depth=depth,
        reading_seconds=size / store_speed(gpus, assumed),
        request_seconds=shards / (assumed.get_per_prefix_second * assumed.prefixes),
        adding_seconds=adding / min(cores, tasks),
        merging_seconds=merged / assumed.merge_bytes_per_second,
        driver_seconds=tasks * measured.task_seconds,
        partial_bytes=sizes[-1],
    )


def partial_bytes(work: Workload, rows: float, assumed: Assumed) -> float:
    """Return an upper bound: one entry per row, but at most one per neuron and token."""
    return min(rows * assumed.reading_row_bytes, 8.0 * work.neurons * work.vocabulary)
