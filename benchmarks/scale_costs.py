"""The measured costs that the scale model starts from, read from benchmarks/results/."""

import json
from pathlib import Path
from typing import Any

from benchmarks.scale_model import Measured

RESULTS = Path(__file__).parent / "results"
CAPTURE = "capture-2-core-xeon.json"
ATTRIBUTION = "attribution-2-core-xeon.json"
JOBS = "scale-jobs-2-core-xeon.json"
GROWTH = "scale-growth-2-core-xeon.json"
WORKERS = "scale-capture-2-core-xeon.json"
FACTOR_SHARE = 0.69
"""Of float32 factors after byte-splitting and zstd, in a prototype of the study's run."""


def measured(folder: Path = RESULTS) -> Measured:
    """Raises ``FileNotFoundError`` where a benchmark has not left its results."""
    lines = {line["name"]: line for line in read(folder / CAPTURE)["results"]}
    attribution, jobs = read(folder / ATTRIBUTION), read(folder / JOBS)
    ours = attribution["lines"][0]["million_rows_per_second"] * 1e6
    per_shard = shard_seconds(jobs["growth"])
    return Measured(
        recording={
            "outliers": share(lines, "capture, written"),
            "tallies": share(lines, "ours: factors multiplied out"),
            "factors": share(lines, "ours: factors multiplied out"),
            "dense": share(lines, "ours: factors multiplied out"),
            "checkpoints": 0.0,
        },
        outlier_bytes=lines["capture, written"]["sizes"]["bytes_per_row"],
        factor_share=FACTOR_SHARE,
        rows_per_core_second=ours / attribution["threads"],
        shard_seconds=2 * per_shard,
        driver_seconds=per_shard,
    )


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def share(lines: dict[str, dict[str, Any]], name: str) -> float:
    """What a step of this line takes beyond a plain step, at the median of the rounds."""
    return lines[name]["ratio"][1] - 1.0


def shard_seconds(growth: list[dict[str, Any]]) -> float:
    """Between the two largest numbers of small shards, on two workers and one driver.

    Whichever of them was the slower, neither costs more than this (a worker: twice).
    """
    few, many = sorted(growth, key=lambda sample: sample["shards"])[-2:]
    return (many["seconds"] - few["seconds"]) / (many["shards"] - few["shards"])
