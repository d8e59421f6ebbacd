"""Read numbers and ranges from options: ``--steps 100:200``, ``--segments 0-9,12``."""

import re

from capture.errors import ConfigError


def parse_steps(text: str) -> tuple[int, int | None]:
    """Parse A:B into the first step and the one after the last (None: the end of the run).

    Raises ``ConfigError`` for anything else.
    """
    found = re.fullmatch(r"(\d{1,9})?(:(\d{1,9})?)?", text, re.ASCII)
    if not found or not text:
        raise ConfigError("--steps", f"got {text!r}, must be like 0:100, 100: or 7")
    first = int(found[1] or 0)
    if not found[2]:
        return first, first + 1
    return first, int(found[3]) if found[3] else None


def parse_numbers(option: str, text: str, count: int, noun: str) -> list[int]:
    """Parse a list such as 0-9,12 into numbers below ``count``, ascending, each once.

    ``noun``: what they number, for errors. Raises ``ConfigError``, which names the option.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip(), re.ASCII)
        if not found:
            raise ConfigError(option, f"got {text!r}", "Write numbers and ranges: 0-9,12")
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < count:
            problem = f"got {part.strip()!r}, the run has {noun} 0 to {count - 1}"
            raise ConfigError(option, problem)
        chosen |= set(range(first, last + 1))
    return sorted(chosen)
