"""The scale model's predictions, measured costs and assumptions as tables of docs/scale.md."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.scale.analysis import predict_attribution
from benchmarks.scale.costs import RESULTS, measured
from benchmarks.scale.model import (
    KINDS,
    Assumed,
    Kind,
    Measured,
    gpus_per_replica,
    predict,
    record_bytes,
    replay_days,
)
from benchmarks.scale.workloads import GPT3, SEVEN, SMALL, STUDY, Workload

GPUS = (8, 32, 128, 512, 2048, 4096)
WORKLOADS = (STUDY, SMALL, SEVEN, GPT3)
UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
ASSUMPTIONS = {
    "gpu_flops": "sustained per second by a GPU in training: 40 % of an H100's dense bfloat16",
    "gpu_memory_bytes": "memory of a GPU",
    "training_bytes": "per parameter in training: weight, gradient, two moments, bfloat16 copy",
    "memory_share": "share of a GPU's memory for these; activations and shifts take the rest",
    "gpus_per_node": "GPUs per node",
    "cores_per_gpu": "CPU cores per GPU that analyses use",
    "network_bytes_per_second": "speed of a GPU in an all-reduce: 400 Gbit/s",
    "latency_seconds": "latency of a hop of the all-reduce",
    "node_store_bytes_per_second": "speed between a node and the store: 40 Gbit/s",
    "store_bytes_per_second": "speed of the store, summed over all nodes",
    "put_per_prefix_second": "puts per partition of the store (Amazon S3's documented rate)",
    "get_per_prefix_second": "gets per partition of the store (likewise)",
    "prefixes": "partitions into which the store has split the run's keys",
    "part_bytes": "part size of a multipart upload (Ontogeny), if `most_parts` suffice",
    "most_parts": "largest number of parts of an object (S3)",
    "checkpoint_nodes": "nodes that write a checkpoint (Ontogeny: that of the first worker)",
    "step_seconds": "overhead of a step of any size: kernel launches, the training loop",
    "merge_bytes_per_second": "speed of merging two partial results, on one core",
    "reading_row_bytes": "an outlier row in a partial result, if no two rows share an entry",
}
"""Field of ``Assumed`` → description on the page."""
SOURCES = {
    "outlier_bytes": "bytes of an outlier row on the store (`make bench`)",
    "factor_share": "bytes of factors on the store over float32 (`capture --written`)",
    "rows_per_core_second": "rows that attribution adds up per core and second (`make bench`)",
    "shard_seconds": "worker time per shard without that for its rows (at most)",
    "task_seconds": "driver time per task (at most)",
}
"""Field of ``Measured`` → description and source on the page."""


def tables(folder: Path = RESULTS) -> list[str]:
    """Return tables 0 to 6 of docs/scale.md, in order; ``measured_tables`` has the others."""
    costs, assumed = measured(folder), Assumed()
    return [
        record_table(costs),
        training_table(SEVEN, costs, assumed),
        training_table(GPT3, costs, assumed),
        replay_table(GPT3, costs, assumed),
        attribution_table(costs, assumed),
        measurement_table(costs),
        assumption_table(assumed),
    ]


def assumption_table(assumed: Assumed) -> str:
    rows = [
        (f"`{name}`", number(getattr(assumed, name)), text) for name, text in ASSUMPTIONS.items()
    ]
    return markdown(("assumption", "value", "meaning"), rows)


def measurement_table(costs: Measured) -> str:
    rows = [(f"`{name}`", number(getattr(costs, name)), text) for name, text in SOURCES.items()]
    text = "time that recording adds, as a share of a plain step (`make bench`, CPU)"
    shares = [
        (f"`recording[{kind}]`", f"{share:.2f}", text) for kind, share in costs.recording.items()
    ]
    return markdown(("measured", "value", "meaning"), [*rows, *shares])


def record_table(costs: Measured) -> str:
    """Return the bytes of each kind of record, for whole runs."""
    rows = [
        (work.name, *(size(record_bytes(work, kind, costs)) for kind in KINDS))
        for work in WORKLOADS
    ]
    return markdown(("run", *KINDS), rows)


def training_table(work: Workload, costs: Measured, assumed: Assumed) -> str:
    """Return days of training and the bottleneck, by GPUs and kind of record."""
    rows = []
    for gpus in sufficient_gpus(work, assumed):
        cells = []
        for kind in KINDS:
            found = predict(work, kind, gpus, costs, assumed)
            cells.append(f"{days(found.days)}, {found.bottleneck}")
        rows.append((f"{gpus:,}", *cells))
    return markdown(("GPUs", *KINDS), rows)


def replay_table(work: Workload, costs: Measured, assumed: Assumed) -> str:
    """Return the days to replay the whole run for a record."""
    kinds: tuple[Kind, ...] = ("tallies", "outliers", "factors")
    rows = [
        (f"{gpus:,}", *(days(replay_days(work, k, gpus, costs, assumed)) for k in kinds))
        for gpus in sufficient_gpus(work, assumed)
    ]
    return markdown(("GPUs", *kinds), rows)


def attribution_table(costs: Measured, assumed: Assumed) -> str:
    """Return the costs of an attribution over all outliers, on the machines that captured them."""
    rows = []
    for work, gpus in ((STUDY, 8), (SMALL, 128), (SEVEN, 2048), (GPT3, 4096)):
        workers = predict(work, "outliers", gpus, costs, assumed).replicas
        found = predict_attribution(work, workers, gpus, costs, assumed)
        row = (work.name, f"{gpus:,}", f"{found.shards:,}", f"{found.depth}")
        row += (clock(found.adding_seconds), clock(found.merging_seconds))
        row += (clock(found.driver_seconds), size(found.partial_bytes))
        rows.append((*row, f"{clock(found.seconds)}, {found.bottleneck}"))
    head = ("run", "GPUs", "shards", "merge depth", "adding up", "merging", "driver")
    return markdown((*head, "last partial", "answer after, bottleneck"), rows)


def sufficient_gpus(work: Workload, assumed: Assumed) -> list[int]:
    """Return the numbers of GPUs that hold at least one replica."""
    return [gpus for gpus in GPUS if gpus >= gpus_per_replica(work, assumed)]


def with_tables(text: str, made: Sequence[str]) -> str:
    """Return the page with its tables replaced; ``<!-- table 3 -->`` stands above ``made[3]``."""

    def replace(comment: re.Match[str]) -> str:
        return f"{comment[1]}{made[int(comment[2])]}\n"

    return re.sub(r"(<!-- table (\d+) -->\n)(?:\|.*\n)*", replace, text)


# --- how numbers are written ----------------------------------------------------------------------


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Format a number with few digits: 40000000000.0 → 4e+10, 3500.0 → 3,500."""
    return f"{value:,.3g}" if value < 1000 else (f"{value:,.0f}" if value < 1e6 else f"{value:.3g}")


def size(count: float) -> str:
    """Format bytes with a unit of 1000: 8.5e11 → 850 GB."""
    power = 0
    while count >= 999.5 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.{0 if count >= 99.5 else 1}f} {UNITS[power]}"


def days(count: float) -> str:
    return clock(count * 86_400)


def clock(seconds: float) -> str:
    """Format a time in the largest unit in which it is at least 1: 5400 → 1.5 h."""
    for unit, length in (("years", 31_557_600), ("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
