"""Interleaved timing: what a step takes by each method, side by side on the same machine.

In every round each method runs one block of consecutive steps, some untimed to warm up, then the
timed ones. A sample is the mean of a block. Plain blocks stand between all others, and a method's
ratio is to the mean of the two beside it, so a machine that slows down for a minute slows both.
Rounds run alternately forwards and backwards through the methods, which cancels a steady drift.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from capture.engine.step_plan import PlannedStep

Run = Callable[[Sequence[PlannedStep]], float]
"""Trains these turns; returns seconds per step."""


def nothing() -> None:
    """No work between blocks."""


@dataclass(frozen=True)
class Line:
    """One line of the table: a method and how it is timed."""

    name: str
    note: str
    run: Run
    steps: int
    """Timed steps a block."""
    warmup: int = 1
    """Untimed steps before them."""
    settle: Callable[[], None] = nothing
    """Ends work in the background after a block, lest it disturb the next one; untimed."""


@dataclass
class Samples:
    """What was measured of a line, one entry a round."""

    seconds: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    """The mean of the plain blocks before and after it."""
    peak_bytes: int | None = None
    """Resident memory of the whole process at its highest in the timed steps."""


def stopwatch(step: Callable[[PlannedStep], object]) -> Run:
    def run(turns: Sequence[PlannedStep]) -> float:
        start = time.perf_counter()
        for turn in turns:
            step(turn)
        return (time.perf_counter() - start) / len(turns)

    return run


def measure(lines: list[Line], turns: Iterator[PlannedStep], rounds: int) -> dict[str, Samples]:
    """Samples by name of the line; the first one is the plain step, which stands beside each."""
    plain, *others = lines
    found = {line.name: Samples() for line in lines}
    beside = found[plain.name].seconds
    for number in range(rounds):
        time_block(plain, turns, found[plain.name])
        for line in others[:: -1 if number % 2 else 1]:
            print(f"round {number + 1} of {rounds}: {line.name}", file=sys.stderr, flush=True)
            time_block(line, turns, found[line.name])
            time_block(plain, turns, found[plain.name])
            found[line.name].plain.append((beside[-2] + beside[-1]) / 2)
    found[plain.name].plain = list(beside)
    return found


def time_block(line: Line, turns: Iterator[PlannedStep], samples: Samples) -> None:
    line.run(list(itertools.islice(turns, line.warmup)))
    reset_peak()
    samples.seconds.append(line.run(list(itertools.islice(turns, line.steps))))
    if peak := peak_bytes():
        samples.peak_bytes = max(peak, samples.peak_bytes or 0)
    line.settle()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def reset_peak() -> None:
    """Start the kernel's record of the highest resident memory anew (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int | None:
    """Highest resident memory since ``reset_peak``; None where the kernel does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else None
