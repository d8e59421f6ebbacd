"""Settings of an intervention: parts that are suppressed and datums that are left out, and when."""

import re
from dataclasses import dataclass, field

from capture.errors import ConfigError, at_least

KEY = "intervention"


@dataclass(frozen=True, kw_only=True)
class InterventionConfig:
    """What is suppressed or left out while the model trains. Everything else stays as it is: the
    seeds, the order of the datums, and the number of datums by which the mean loss divides."""

    suppress: list[str] = field(default_factory=list)
    """Parts whose output is 0 in the forward pass, so that they neither help nor learn: heads, as
    in layers.0.self_attn:2, or inputs of a weight (neurons), as in layers.1.linear2.weight:0-9,17.
    Without numbers all heads or neurons; names may be glob patterns, as in layers.*.self_attn."""
    leave_out: list[str] = field(default_factory=list)
    """Ids of training datums whose loss does not count, as in 3 or 20-29. They keep their places in
    the batches."""
    first_step: int = 0
    """First step of the intervention."""
    end_step: int | None = None
    """The step after the last one; null: the intervention lasts to the end of the run."""

    def __post_init__(self) -> None:
        at_least(f"{KEY}.first_step", self.first_step, 0)
        if self.end_step is not None and self.end_step <= self.first_step:
            problem = f"got {self.end_step}, must be above {KEY}.first_step = {self.first_step}"
            raise ConfigError(f"{KEY}.end_step", problem)
        if not self.is_set and (self.first_step or self.end_step is not None):
            name = "first_step" if self.first_step else "end_step"
            problem = "is set, but nothing is suppressed or left out"
            raise ConfigError(f"{KEY}.{name}", problem, f"Set {KEY}.suppress or {KEY}.leave_out")
        for entry in self.suppress:
            split_part(entry)
        self.left_out_ranges()

    @property
    def is_set(self) -> bool:
        return bool(self.suppress or self.leave_out)

    def steps(self, num_steps: int) -> range:
        """Return the steps of the intervention in a run of so many steps.

        Raises ``ConfigError`` if the run is too short for them.
        """
        end_step = num_steps if self.end_step is None else self.end_step
        if self.is_set and max(self.first_step + 1, end_step) > num_steps:
            name = "end_step" if end_step > num_steps else "first_step"
            problem = f"got {getattr(self, name)}, but the run has {num_steps} steps"
            raise ConfigError(f"{KEY}.{name}", problem)
        return range(self.first_step, end_step) if self.is_set else range(0)

    def describe(self) -> str:
        """Return what is done and when, as a phrase; untouched without an intervention."""
        if not self.is_set:
            return "untouched"
        done = [f"suppressed {', '.join(self.suppress)}"] if self.suppress else []
        done += [f"datums left out {', '.join(self.leave_out)}"] if self.leave_out else []
        to = "the end" if self.end_step is None else f"step {self.end_step - 1}"
        return f"{' and '.join(done)}, from step {self.first_step} to {to}"

    def left_out(self) -> list[int]:
        """Return the ids of the datums that are left out, ascending."""
        return sorted({number for own in self.left_out_ranges() for number in own})

    def left_out_ranges(self) -> list[range]:
        """Return the ranges of these ids as they are written."""
        found = (parse_ranges(f"{KEY}.leave_out", str(entry)) for entry in self.leave_out)
        return [own for ranges in found for own in ranges]


def split_part(entry: str) -> tuple[str, list[range] | None]:
    """Split NAME or NAME:NUMBERS into the name and the ranges of numbers; None: all.

    Raises ``ConfigError`` for an empty name and for anything but numbers after the colon.
    """
    name, colon, numbers = entry.partition(":")
    if not name.strip() or name.strip().isdigit():
        problem = f"got {entry!r}, must be like layers.0.self_attn:2"
        raise ConfigError(f"{KEY}.suppress", problem, "Put entries with a comma in quotes")
    if not colon:
        return name.strip(), None
    return name.strip(), parse_ranges(f"{KEY}.suppress", numbers)


def parse_ranges(key: str, text: str) -> list[range]:
    """Parse numbers and ranges such as 0-9,12; raise ``ConfigError`` for anything else."""
    found = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip(), re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if first > last:
            raise ConfigError(key, f"got {text!r}", "Write numbers and ranges: 0-9,12")
        found.append(range(first, last + 1))
    return found


def require_datums(config: InterventionConfig, num_datums: int) -> None:
    """Raise ``ConfigError`` if a datum that is left out does not exist, or if none is left."""
    last = max((own[-1] for own in config.left_out_ranges()), default=0)
    if last >= num_datums:
        problem = f"there is no training datum {last}; there are {num_datums:,}"
        raise ConfigError(f"{KEY}.leave_out", problem, f"Choose from 0 to {num_datums - 1}")
    if len(config.left_out()) == num_datums:
        raise ConfigError(f"{KEY}.leave_out", "leaves out every training datum")
