"""Which steps to measure: log-spaced checkpoints, all of them, or steps from a list."""

import re
from collections.abc import Sequence

import numpy as np

from capture.errors import ConfigError

PART = re.compile(r"(\d{1,12})(?::(\d{1,12})(?::(\d{1,12}))?)?", re.ASCII)
EXAMPLE = "For example: log, all, or 0,10,20:100:5"
MOST_STEPS = 10_000


def log_spaced(available: Sequence[int], count: int) -> list[int]:
    """Return at most ``count`` of the steps, evenly spread by log(1 + step), with both ends."""
    steps = np.unique(available)
    if len(steps) <= count:
        return steps.tolist()
    wanted = np.expm1(np.linspace(np.log1p(steps[0]), np.log1p(steps[-1]), count))
    nearest = {int(steps[np.abs(np.log1p(steps) - np.log1p(want)).argmin()]) for want in wanted}
    # Where checkpoints are sparse several wanted steps share one; the largest gaps get the others.
    while len(nearest) < count:
        chosen = np.array(sorted(nearest))
        gap = np.abs(np.log1p(steps)[:, None] - np.log1p(chosen)[None, :]).min(1)
        nearest.add(int(steps[gap.argmax()]))
    return sorted(nearest)


def listed(text: str, last: int) -> list[int]:
    """Return the steps of a list such as 0,10,20:100:5 (first, end, spacing; without the end).

    Raises ``ConfigError`` for another form, and for a step after ``last``.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        found = PART.fullmatch(part.strip())
        if not found:
            raise ConfigError("--steps", f"got {text!r}", EXAMPLE)
        first = int(found[1])
        end = int(found[2]) if found[2] else first + 1
        spacing = int(found[3]) if found[3] else 1
        if spacing < 1 or end <= first or (end - first) // max(spacing, 1) > MOST_STEPS:
            raise ConfigError("--steps", f"got {part.strip()!r}, which has no or too many steps")
        chosen.update(range(first, end, spacing))
    if (largest := max(chosen)) > last:
        raise ConfigError("--steps", f"got {largest}, but the last checkpoint is at {last}")
    return sorted(chosen)


def choose_steps(
    wanted: str, available: Sequence[int], count: int, where: str, *, replays: bool = True
) -> list[int]:
    """Return the steps to measure, ascending; raises ``ConfigError`` for fewer than two.

    ``available``: steps with a checkpoint; ``where`` names what holds them. Without ``replays`` a
    step must be one of them.
    """
    if wanted == "log":
        chosen = log_spaced(available, count)
    elif wanted == "all":
        chosen = sorted(set(available))
    else:
        chosen = listed(wanted, max(available, default=0))
        if (lacking := sorted(set(chosen) - set(available))) and not replays:
            near = min(available, key=lambda step: abs(step - lacking[0]))
            problem = f"got {lacking[0]}, but {where} has no checkpoint there"
            raise ConfigError("--steps", problem, f"The nearest is at {near}")
    if len(chosen) < 2:
        problem = f"a trajectory needs 2 checkpoints, found {len(chosen)}"
        remedy = "Choose more with --steps, or train with a smaller capture.segment_steps"
        raise ConfigError(where, problem, remedy)
    return chosen
