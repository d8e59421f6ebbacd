"""The scale model's assumptions and predictions as the tables of docs/scale.md."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.scale.analysis import ask
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
WHY = {
    "gpu_flops": "a second, sustained by a GPU in training: 40 % of an H100's dense bfloat16",
    "gpu_memory_bytes": "of a GPU",
    "training_bytes": "a parameter while it trains: weight, gradient, two moments, bfloat16 copy",
    "memory_share": "of a GPU's memory is for these; the rest for activations and shifts",
    "gpus_per_node": "GPUs in a node",
    "cores_per_gpu": "cores that analyses may use, a GPU",
    "network_bytes_per_second": "of a GPU in an all-reduce: 400 Gbit/s",
    "latency_seconds": "of a hop of the all-reduce",
    "node_store_bytes_per_second": "between a node and the store: 40 Gbit/s",
    "store_bytes_per_second": "that the store takes or gives in all",
    "put_per_prefix_second": "puts that a store takes, a partition (Amazon S3's promise)",
    "get_per_prefix_second": "gets, likewise",
    "prefixes": "partitions that the store has split the run's keys into",
    "part_bytes": "of a multipart upload (ours), as long as `most_parts` are enough",
    "most_parts": "parts of an object (S3)",
    "checkpoint_nodes": "nodes that write a checkpoint: the first worker's (ours)",
    "step_seconds": "of a step whatever its size: launches, the loop",
    "merge_bytes_per_second": "of two partial results into one, on a core",
    "reading_row_bytes": "of an outlier row in a partial result, none falling together",
}
"""Field of ``Assumed`` → what it is."""
SOURCES = {
    "outlier_bytes": "an outlier row on the store (`make bench`)",
    "factor_share": "factors on the store over their float32 (`capture --written`)",
    "rows_per_core_second": "rows that attribution adds up, a core and second (`make bench`)",
    "shard_seconds": "of a worker, a shard beside its rows (at most)",
    "task_seconds": "of the driver, a task (at most)",
}
"""Field of ``Measured`` → what it is."""


def tables(folder: Path = RESULTS) -> list[str]:
    """All of docs/scale.md, in its order."""
    costs, assumed = measured(folder), Assumed()
    return [
        record_table(costs),
        training_table(SEVEN, costs, assumed),
        training_table(GPT3, costs, assumed),
        replay_table(GPT3, costs, assumed),
        asking_table(costs, assumed),
        measurement_table(costs),
        assumption_table(assumed),
    ]


def assumption_table(assumed: Assumed) -> str:
    rows = [(f"`{name}`", number(getattr(assumed, name)), why) for name, why in WHY.items()]
    return markdown(("assumption", "value", "what it is"), rows)


def measurement_table(costs: Measured) -> str:
    rows = [(f"`{name}`", number(getattr(costs, name)), why) for name, why in SOURCES.items()]
    text = "of a plain step's time that recording adds (`make bench`, CPU)"
    shares = [
        (f"`recording[{kind}]`", f"{share:.2f}", text) for kind, share in costs.recording.items()
    ]
    return markdown(("measured", "value", "what it is"), [*rows, *shares])


def record_table(costs: Measured) -> str:
    """Bytes of each kind of record, of whole runs."""
    rows = [
        (work.name, *(size(record_bytes(work, kind, costs)) for kind in KINDS))
        for work in WORKLOADS
    ]
    return markdown(("run", *KINDS), rows)


def training_table(work: Workload, costs: Measured, assumed: Assumed) -> str:
    """Days, and what a step waits for, by GPUs and kind of record."""
    rows = []
    for gpus in enough(work, assumed):
        cells = []
        for kind in KINDS:
            found = predict(work, kind, gpus, costs, assumed)
            cells.append(f"{days(found.days)}, {found.bottleneck}")
        rows.append((f"{gpus:,}", *cells))
    return markdown(("GPUs", *KINDS), rows)


def replay_table(work: Workload, costs: Measured, assumed: Assumed) -> str:
    """Days to add a record to the whole run afterwards."""
    kinds: tuple[Kind, ...] = ("tallies", "outliers", "factors")
    rows = [
        (f"{gpus:,}", *(days(replay_days(work, k, gpus, costs, assumed)) for k in kinds))
        for gpus in enough(work, assumed)
    ]
    return markdown(("GPUs", *kinds), rows)


def asking_table(costs: Measured, assumed: Assumed) -> str:
    """An attribution over all outliers, on the machines that captured them."""
    rows = []
    for work, gpus in ((STUDY, 8), (SMALL, 128), (SEVEN, 2048), (GPT3, 4096)):
        workers = predict(work, "outliers", gpus, costs, assumed).replicas
        found = ask(work, workers, gpus, costs, assumed)
        row = (work.name, f"{gpus:,}", f"{found.shards:,}", f"{found.depth}")
        row += (clock(found.adding_seconds), clock(found.merging_seconds))
        row += (clock(found.driver_seconds), size(found.partial_bytes))
        rows.append((*row, f"{clock(found.seconds)}, {found.bottleneck}"))
    head = ("run", "GPUs", "shards", "merges deep", "adding up", "merging", "driver")
    return markdown((*head, "last partial", "answer after"), rows)


def enough(work: Workload, assumed: Assumed) -> list[int]:
    return [gpus for gpus in GPUS if gpus >= gpus_per_replica(work, assumed)]


def with_tables(text: str, made: Sequence[str]) -> str:
    """The page with these tables in the places that its comments number."""

    def renewed(place: re.Match[str]) -> str:
        return f"{place[1]}{made[int(place[2])]}\n"

    return re.sub(r"(<!-- table (\d+) -->\n)(?:\|.*\n)*", renewed, text)


# --- how numbers are written ----------------------------------------------------------------------


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """40000000000.0 → 4e+10, 3500.0 → 3,500"""
    return f"{value:,.3g}" if value < 1000 else (f"{value:,.0f}" if value < 1e6 else f"{value:.3g}")


def size(count: float) -> str:
    """Two digits and a unit: 8.5e11 → 850 GB"""
    power = 0
    while count >= 999.5 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.{0 if count >= 99.5 else 1}f} {UNITS[power]}"


def days(count: float) -> str:
    return clock(count * 86_400)


def clock(seconds: float) -> str:
    """The largest unit in which it is at least 1: 5400 → 1.5 h"""
    for unit, length in (("years", 31_557_600), ("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
