"""Read the measured costs of the scale model from benchmarks/results/."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale.model import Measured
from cluster.on_ray.policy import block_size, max_tasks

RESULTS = Path(__file__).parents[1] / "results"
CAPTURE = "capture-2-core-xeon.json"
ATTRIBUTION = "attribution-2-core-xeon.json"
WRITTEN = "capture-written-2-core-epyc.json"
JOBS = "scale-jobs-2-core-epyc.json"
SHORT_JOBS = "scale-jobs-short-2-core-epyc.json"
"""Like ``JOBS``, with fewer shards."""
GROWTH = "scale-growth-2-core-xeon.json"
WORKERS = "scale-capture-2-core-epyc.json"
REPLAY = "scale-replay-2-core-epyc.json"
DRIFT = "scale-drift-2-core-epyc.json"
UPLOADS = "scale-uploads-2-core-epyc.json"
FACTOR_BYTES = 849_600
"""Bytes of a datum's factors in the study's model, as float32, before they are packed."""
CPUS = 2
"""Cores of the machine on which jobs were measured."""


def measured(folder: Path = RESULTS) -> Measured:
    """Return the costs; raises ``FileNotFoundError`` if a file of results is missing."""
    lines, written = (
        {line["name"]: line for line in read(folder / name)["results"]}
        for name in (CAPTURE, WRITTEN)
    )
    outliers, factors = written["capture, written"], written["capture with factors, written"]
    attribution, jobs = read(folder / ATTRIBUTION), read(folder / JOBS)
    ours = attribution["lines"][0]["million_rows_per_second"] * 1e6
    per_shard, per_task = shard_and_task(jobs["growth"])
    packed = factors["sizes"]["bytes_per_datum"] - outliers["sizes"]["bytes_per_datum"]
    multiplied_out = share(lines["ours: factors multiplied out"])
    return Measured(
        recording={
            "outliers": share(outliers),
            "tallies": multiplied_out,
            "factors": share(factors),
            "dense": multiplied_out,
            "checkpoints": 0.0,
        },
        outlier_bytes=outliers["sizes"]["bytes_per_row"],
        factor_share=packed / FACTOR_BYTES,
        rows_per_core_second=ours / attribution["threads"],
        shard_seconds=per_shard,
        task_seconds=per_task,
    )


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def share(line: dict[str, Any]) -> float:
    """Return the time that a step takes beyond a plain one, as a share; median over rounds."""
    return line["ratio"][1] - 1.0


def shard_and_task(growth: list[dict[str, Any]]) -> tuple[float, float]:
    """Return upper bounds on a worker's seconds per shard and the driver's seconds per task.

    Solves seconds = shards · (seconds per shard) / 2 + tasks · (seconds per task) for the two jobs
    with the most small shards, which differ in shards per task. Driver and workers overlap, so the
    solution is used as an upper bound of both.
    """
    pairs = sorted((sample["shards"], sample["seconds"]) for sample in growth)[-2:]
    most = max_tasks(CPUS)
    counts = [(number, math.ceil(number / block_size(number, most))) for number, _ in pairs]
    found = np.linalg.solve(np.array(counts, float), [seconds for _, seconds in pairs])
    per_shard, per_task = np.maximum(0, found).tolist()
    return CPUS * per_shard, per_task
