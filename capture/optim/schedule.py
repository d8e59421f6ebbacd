"""Learning-rate schedules: a factor on the learning rate, as a pure function of the step.

The cosine is Loshchilov & Hutter 2017 (SGDR), equation 5, with one period. Warm-up is linear (Goyal
et al. 2017, section 2.2).
"""

import math
from dataclasses import dataclass
from typing import Literal

from capture.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate changes during training."""

    kind: Literal["epoch", "constant", "step", "cosine"] = "epoch"
    """epoch: times training.decay after each epoch; constant; step: times training.decay after
    each every_steps steps; cosine: half a cosine until the end of the run."""
    every_steps: int = 1000
    """Steps between two changes, for kind step."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises linearly, from 1 / warmup_steps of it."""
    least: float = 0.0
    """Share of the learning rate at which the cosine ends, 0 to 1."""

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise config_error("every_steps", f"got {self.every_steps}, must be at least 1")
        if self.warmup_steps < 0:
            raise config_error("warmup_steps", f"got {self.warmup_steps}, must be at least 0")
        if not 0 <= self.least <= 1:
            raise config_error("least", f"got {self.least}, must be between 0 and 1")


def config_error(name: str, problem: str) -> ConfigError:
    """Return the error for a setting of ``ScheduleConfig``."""
    return ConfigError(f"training.schedule.{name}", problem)


def require_fit(config: ScheduleConfig, num_steps: int) -> None:
    """Raise ``ConfigError`` if the warm-up does not end before the run does."""
    if config.warmup_steps >= max(1, num_steps):
        problem = f"got {config.warmup_steps}, must be below {num_steps}, the steps of the run"
        raise config_error("warmup_steps", problem)


def learning_rate_factor(
    config: ScheduleConfig, decay: float, *, step: int, epoch: int, num_steps: int
) -> float:
    """Return the factor on the learning rate at ``step`` (from 0) of a run of ``num_steps``."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.kind == "cosine":
        assert num_steps > config.warmup_steps, "a cosine must know where it ends"
        done = max(0, step - config.warmup_steps) / (num_steps - config.warmup_steps)
        return warm * (config.least + (1 - config.least) * (1 + math.cos(math.pi * done)) / 2)
    periods = {"epoch": epoch, "step": step // config.every_steps, "constant": 0}
    return warm * decay ** periods[config.kind]


def describe_schedule(config: ScheduleConfig, decay: float) -> str:
    """Return a phrase to put after a learning rate, such as "× 0.95 an epoch"."""
    words = {
        "epoch": f"× {decay:g} an epoch",
        "constant": "throughout",
        "step": f"× {decay:g} every {config.every_steps:,} steps",
        "cosine": f"down a cosine to {config.least:.0%} of it",
    }[config.kind]
    return words + (
        f" after {config.warmup_steps:,} steps of warm-up" if config.warmup_steps else ""
    )
