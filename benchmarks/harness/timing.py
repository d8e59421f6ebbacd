"""Interleaved timing of a training step by each method on the same machine.

In every round each method runs one block of consecutive steps: untimed ones to warm up, then the
timed ones. A sample is the mean over the timed steps of a block. A plain block stands between any
two others, and a method's ratio is to the mean of the two plain blocks beside it, so a machine that
slows down for a minute slows both. Every second round runs through the methods in reverse order,
which cancels a steady drift.
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
"""Takes these steps and returns seconds per step."""


def nothing() -> None:
    """Do nothing; the default of ``Line.flush``."""


@dataclass(frozen=True)
class Line:
    """One line of the table: a method and how it is timed."""

    name: str
    note: str
    run: Run
    steps: int
    """Number of timed steps per block."""
    warmup: int = 1
    """Number of untimed steps before them."""
    flush: Callable[[], None] = nothing
    """Untimed; waits after a block for background work, which would disturb the next block."""


@dataclass
class Samples:
    """Measurements of a line, one entry per round."""

    seconds: list[float] = field(default_factory=list)
    """Seconds per step."""
    plain: list[float] = field(default_factory=list)
    """Seconds per step, averaged over the plain blocks before and after."""
    peak_bytes: int | None = None
    """Peak resident memory of the process during the timed steps."""


def stopwatch(step: Callable[[PlannedStep], object]) -> Run:
    """Return a function that takes steps and returns the mean seconds per step."""

    def run(planned_steps: Sequence[PlannedStep]) -> float:
        start = time.perf_counter()
        for planned in planned_steps:
            step(planned)
        return (time.perf_counter() - start) / len(planned_steps)

    return run


def measure(
    lines: list[Line], planned_steps: Iterator[PlannedStep], rounds: int
) -> dict[str, Samples]:
    """Time all lines in interleaved blocks; return the samples by name of the line.

    The first line is the plain step, to which the others are compared.
    """
    plain, *others = lines
    found = {line.name: Samples() for line in lines}
    beside = found[plain.name].seconds
    for number in range(rounds):
        time_block(plain, planned_steps, found[plain.name])
        for line in others[:: -1 if number % 2 else 1]:
            print(f"round {number + 1} of {rounds}: {line.name}", file=sys.stderr, flush=True)
            time_block(line, planned_steps, found[line.name])
            time_block(plain, planned_steps, found[plain.name])
            found[line.name].plain.append((beside[-2] + beside[-1]) / 2)
    found[plain.name].plain = list(beside)
    return found


def time_block(line: Line, planned_steps: Iterator[PlannedStep], samples: Samples) -> None:
    """Run one block of a line; add its time and peak memory to the samples."""
    line.run(list(itertools.islice(planned_steps, line.warmup)))
    reset_peak()
    samples.seconds.append(line.run(list(itertools.islice(planned_steps, line.steps))))
    if peak := peak_bytes():
        samples.peak_bytes = max(peak, samples.peak_bytes or 0)
    line.flush()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def reset_peak() -> None:
    """Reset the kernel's peak of resident memory to the present value (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int | None:
    """Return the peak resident memory since ``reset_peak``, or None if not on Linux."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else None
