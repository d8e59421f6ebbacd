"""What two workers gain and cost, as measured, as tables of docs/scale.md."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scale.costs import DRIFT, JOBS, REPLAY, RESULTS, SHORT_JOBS, WORKERS, read
from benchmarks.scale.tables import clock, markdown


def measured_tables(folder: Path = RESULTS) -> list[str]:
    """Those after the model's, in their order."""
    jobs, short, replay, capture = (
        read(folder / name) for name in (JOBS, SHORT_JOBS, REPLAY, WORKERS)
    )
    attribution = jobs["efficiency"]
    lines = {line["name"]: line["milliseconds"] for line in capture["lines"]}
    return [
        markdown(
            ("", "one worker", "two", "efficiency", "two that share nothing", "rounds"),
            [
                attribution_row(attribution),
                attribution_row(short["efficiency"]),
                replay_row(replay),
                capture_row("capture, the same batch of 20 shared out", lines, "strong"),
                capture_row("capture, 20 slots for each", lines, "weak"),
            ],
        ),
        markdown(("what a node or a worker more costs", ""), costs(attribution, lines)),
        markdown(
            ("shards", "seconds", "a shard", "the driver's memory rose by"),
            [shards_row(**each) for each in jobs["growth"]],
        ),
        markdown(
            ("from step", "losses differ by at most", "outliers that are the same"),
            [drift_row(**each) for each in read(folder / DRIFT)["segments"]],
        ),
    ]


def attribution_row(found: dict[str, Any]) -> Sequence[str]:
    one, two = found["one_worker_seconds"], found["two_workers_seconds"]
    alone, both = found["half_alone_seconds"], found["halves_at_once_seconds"]
    name = f"attribution on Ray, {found['rows'] / 1e6:.0f} million rows in {found['shards']} shards"
    return row(name, one, two, "s", ratios(alone, both))


def replay_row(found: dict[str, Any]) -> Sequence[str]:
    name = f"replay, {found['segments']} segments of {found['segment_steps']} steps"
    ceiling = ratios(found["half_alone"], found["halves_at_once"])
    return row(name, found["one"], found["two"], "s", ceiling)


def capture_row(name: str, lines: dict[str, list[float]], way: str) -> Sequence[str]:
    """Of a step; twice as many slots count as twice the work."""
    work = 2 if way == "weak" else 1
    return row(name, lines["alone"], lines[way], "ms", work=work)


def row(
    name: str,
    one: list[float],
    two: list[float],
    unit: str,
    ceiling: Sequence[float] = (),
    work: int = 1,
) -> Sequence[str]:
    one_text, two_text = (f"{statistics.median(each):.3g} {unit}" for each in (one, two))
    efficiency = [work * ratio / 2 for ratio in ratios(one, two)]
    return name, one_text, two_text, spread(efficiency), spread(ceiling), str(len(one))


def ratios(one: Iterable[float], other: Iterable[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(one, other, strict=True)]


def spread(values: Sequence[float]) -> str:
    """The median, least and greatest."""
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def costs(job: dict[str, Any], lines: dict[str, list[float]]) -> list[Sequence[str]]:
    one, two = job["one_worker_seconds"], job["two_workers_seconds"]
    beyond = statistics.median(b - a / 2 for a, b in zip(one, two, strict=True))
    median = {name: statistics.median(samples) for name, samples in lines.items()}
    strong, weak = median["strong"] - median["half"], median["weak"] - median["alone"]
    return [
        ("a second node's joining the cluster", clock(statistics.median(job["joining_seconds"]))),
        ("a second node in the first attribution, beyond half of one node's time", clock(beyond)),
        (
            "a second worker in a step of capture",
            f"{strong:.0f} ms of 10 slots, {weak:.0f} ms of 20",
        ),
    ]


def shards_row(shards: int, seconds: float, driver_bytes: int) -> Sequence[str]:
    each, memory = f"{1000 * seconds / shards:.1f} ms", f"{driver_bytes / 1e6:.1f} MB"
    return f"{shards:,}", f"{seconds:.2g}", each, memory


def drift_row(first_step: int, loss_difference: float, same_outliers: float) -> Sequence[str]:
    return f"{first_step}", f"{loss_difference:.1e}", f"{same_outliers:.1%}"
