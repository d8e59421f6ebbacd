"""Settings of the DeepSpeed engine, and what cannot be recorded with it."""

from dataclasses import dataclass
from typing import Literal

from capture.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """What is partitioned among the workers, with ``engine: deepspeed``."""

    stage: Literal[1, 2, 3] = 2
    """ZeRO's: 1 optimizer state, 2 gradients too, 3 weights too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What lives in the host's memory: nothing, optimizer state and weights' master copy, or (of
    stage 3) the weights too."""

    def __post_init__(self) -> None:
        if self.offload == "all" and self.stage != 3:
            problem = f"got all with stage {self.stage}, whose weights are whole on every worker"
            raise ConfigError("deepspeed.offload", problem, "Take optimizer, or deepspeed.stage=3")


def require_captured(loss_positions: str, fallback: str) -> None:
    """Raises ``ConfigError`` for what needs all weights at once, outside DeepSpeed's passes."""
    remedy = "Set engine=plain, or leave this at its default"
    if loss_positions != "all":
        problem = f"got {loss_positions}, which takes a second backward pass; DeepSpeed makes one"
        raise ConfigError("capture.loss_positions", problem, remedy)
    if fallback != "none":
        problem = f"got {fallback}, which needs whole weights; DeepSpeed partitions them"
        raise ConfigError("capture.fallback", problem, remedy)
