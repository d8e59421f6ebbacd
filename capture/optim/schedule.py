"""Learning-rate schedules: what the learning rate is multiplied by, as a pure function of the step.

Cosine: Loshchilov & Hutter 2017 (SGDR), equation 5, with one period. Warm-up is linear: Goyal et
al. 2017, section 2.2.
"""

import math
from dataclasses import dataclass
from typing import Literal

from capture.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate goes on from its first value."""

    kind: Literal["epoch", "constant", "step", "cosine"] = "epoch"
    """Times training.decay after every epoch; as it is; times decay after every so many steps; or
    down a half cosine until the end of the run."""
    every_steps: int = 1000
    """Of kind step: how many steps it stays the same."""
    warmup_steps: int = 0
    """It first rises in a line over this many steps, from 1 / warmup_steps of its value to all."""
    least: float = 0.0
    """Of kind cosine: the share of the learning rate that it goes down to, 0 to 1."""

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise config_error("every_steps", f"got {self.every_steps}, must be at least 1")
        if self.warmup_steps < 0:
            raise config_error("warmup_steps", f"got {self.warmup_steps}, must be at least 0")
        if not 0 <= self.least <= 1:
            raise config_error("least", f"got {self.least}, must be between 0 and 1")


def config_error(name: str, problem: str) -> ConfigError:
    return ConfigError(f"training.schedule.{name}", problem)


def require_fit(config: ScheduleConfig, num_steps: int) -> None:
    """Raises ``ConfigError`` for a warm-up that the run does not reach the end of."""
    if config.warmup_steps >= max(1, num_steps):
        problem = f"got {config.warmup_steps}, must be below {num_steps}, the steps of the run"
        raise config_error("warmup_steps", problem)


def learning_rate_factor(
    config: ScheduleConfig, decay: float, *, step: int, epoch: int, num_steps: int
) -> float:
    """What the learning rate of ``step`` (from 0) is multiplied by, in a run of ``num_steps``."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.kind == "cosine":
        assert num_steps > config.warmup_steps, "a cosine must know where it ends"
        done = max(0, step - config.warmup_steps) / (num_steps - config.warmup_steps)
        return warm * (config.least + (1 - config.least) * (1 + math.cos(math.pi * done)) / 2)
    periods = {"epoch": epoch, "step": step // config.every_steps, "constant": 0}
    return warm * decay ** periods[config.kind]


def describe_schedule(config: ScheduleConfig, decay: float) -> str:
    """Such as "× 0.95 an epoch", to follow a learning rate."""
    words = {
        "epoch": f"× {decay:g} an epoch",
        "constant": "throughout",
        "step": f"× {decay:g} every {config.every_steps:,} steps",
        "cosine": f"down a cosine to {config.least:.0%} of it",
    }[config.kind]
    return words + (
        f" after {config.warmup_steps:,} steps of warm-up" if config.warmup_steps else ""
    )
