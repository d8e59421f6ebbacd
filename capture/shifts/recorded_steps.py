"""Which steps of a long run are recorded: ranges, every n-th step, or steps spaced evenly in log.

Records are written, read and replayed by segment, so a segment with any chosen step is recorded
whole, and the others lack the record until a replay adds it.
"""

import math
import re
from collections.abc import Sequence

from capture.errors import ConfigError

RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
RULE = re.compile(r"(every|log):(\d{1,9})", re.ASCII)
REMEDY = "Write steps and ranges (0-99), every:N (each N-th step) or log:N (N steps a decade)"


def require_entries(entries: Sequence[str], setting: str) -> None:
    """Raise ``ConfigError``, naming ``setting``, for an entry that does not choose steps."""
    for entry in entries:
        step_range, rule = RANGE.fullmatch(entry), RULE.fullmatch(entry)
        backwards = step_range and int(step_range[2] or step_range[1]) < int(step_range[1])
        if backwards or not (step_range or (rule and int(rule[2]))):
            raise ConfigError(setting, f"got {entry!r}", REMEDY)


def any_chosen(entries: Sequence[str], steps: range) -> bool:
    """Return whether any of these consecutive steps is chosen; no entries choose every step."""
    return not entries or any(next_chosen(entry, steps.start) < steps.stop for entry in entries)


def next_chosen(entry: str, step: int) -> float:
    """Return the first step at or after ``step`` that an entry chooses; infinity if none is."""
    if found := RANGE.fullmatch(entry):
        first, last = int(found[1]), int(found[2] or found[1])
        return max(first, step) if step <= last else math.inf
    rule, number = entry.split(":")
    if rule == "every":
        return -(-step // int(number)) * int(number)
    return next_in_log(int(number), step)


def next_in_log(per_decade: int, step: int) -> int:
    """Return the first of 0, 1, …, round(10^(i / per_decade)), … at or after ``step``."""
    if step == 0:
        return 0
    # Rounding moves a step by less than 1, so the search begins one step lower.
    place = math.floor(per_decade * math.log10(max(1, step - 1)))
    while (found := round(10 ** (place / per_decade))) < step:
        place += 1
    return found


def describe_steps(entries: Sequence[str]) -> str:
    """Return which segments are recorded, as a phrase to append; empty if all are."""
    return f", in segments with steps {', '.join(entries)}" if entries else ""
