"""The measurements of two workers as tables of docs/scale.md."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scale.costs import DRIFT, JOBS, REPLAY, RESULTS, SHORT_JOBS, WORKERS, read
from benchmarks.scale.tables import clock, markdown


def measured_tables(folder: Path = RESULTS) -> list[str]:
    """Return the measured tables in order; on the page they follow those of ``tables``."""
    jobs, short, replay, capture = (
        read(folder / name) for name in (JOBS, SHORT_JOBS, REPLAY, WORKERS)
    )
    attribution = jobs["efficiency"]
    lines = {line["name"]: line["milliseconds"] for line in capture["lines"]}
    return [
        markdown(
            ("", "one worker", "two", "efficiency", "two independent processes", "rounds"),
            [
                attribution_row(attribution),
                attribution_row(short["efficiency"]),
                replay_row(replay),
                capture_row("capture, one batch of 20 divided among workers", lines, "strong"),
                capture_row("capture, 20 slots per worker", lines, "weak"),
            ],
        ),
        markdown(("cost of one more node or worker", ""), costs(attribution, lines)),
        markdown(
            ("shards", "seconds", "per shard", "rise of the driver's memory"),
            [shards_row(**each) for each in jobs["growth"]],
        ),
        markdown(
            ("from step", "largest relative difference of a loss", "equal outliers"),
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


def capture_row(name: str, lines: dict[str, list[float]], setting: str) -> Sequence[str]:
    """Return the row for the time of a step; twice as many slots count as twice the work."""
    work = 2 if setting == "weak" else 1
    return row(name, lines["alone"], lines[setting], "ms", work=work)


def row(
    name: str,
    one: list[float],
    two: list[float],
    unit: str,
    ceiling: Sequence[float] = (),
    work: int = 1,
) -> Sequence[str]:
    """Return a row: medians of one and two workers, efficiency, ceiling and number of rounds.

    ``work`` is the work of two workers over that of one.
    """
    one_text, two_text = (f"{statistics.median(each):.3g} {unit}" for each in (one, two))
    efficiency = [work * ratio / 2 for ratio in ratios(one, two)]
    return name, one_text, two_text, spread(efficiency), spread(ceiling), str(len(one))


def ratios(one: Iterable[float], other: Iterable[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(one, other, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Return median, smallest and largest value as text; "" for no values."""
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def costs(job: dict[str, Any], lines: dict[str, list[float]]) -> list[Sequence[str]]:
    """Return rows for the additional time of a second node or worker."""
    one, two = job["one_worker_seconds"], job["two_workers_seconds"]
    beyond = statistics.median(b - a / 2 for a, b in zip(one, two, strict=True))
    median = {name: statistics.median(samples) for name, samples in lines.items()}
    strong, weak = median["strong"] - median["half"], median["weak"] - median["alone"]
    return [
        ("time for a second node to join", clock(statistics.median(job["joining_seconds"]))),
        ("attribution of 148 shards on two nodes, beyond half of the time on one", clock(beyond)),
        (
            "step of capture by two workers, beyond that of one with as many slots as each",
            f"{strong:.0f} ms for 10 slots, {weak:.0f} ms for 20",
        ),
    ]


def shards_row(shards: int, seconds: float, driver_bytes: int) -> Sequence[str]:
    each, memory = f"{1000 * seconds / shards:.1f} ms", f"{driver_bytes / 1e6:.1f} MB"
    return f"{shards:,}", f"{seconds:.2g}", each, memory


def drift_row(first_step: int, loss_difference: float, same_outliers: float) -> Sequence[str]:
    return f"{first_step}", f"{loss_difference:.1e}", f"{same_outliers:.1%}"
