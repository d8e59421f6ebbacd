"""Settings of the DeepSpeed engine, and the capture settings that it does not support."""

from dataclasses import dataclass
from typing import Literal

from capture.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """What DeepSpeed partitions among the workers when engine is deepspeed."""

    stage: Literal[1, 2, 3] = 2
    """ZeRO stage: 1 partitions optimizer state, 2 gradients too, 3 weights too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in host memory: nothing, the optimizer's state and its copy of the weights, or
    (all, stage 3 only) the weights too."""

    def __post_init__(self) -> None:
        if self.offload == "all" and self.stage != 3:
            problem = f"got all with stage {self.stage}, which does not partition weights"
            raise ConfigError(
                "deepspeed.offload", problem, "Set it to optimizer, or set deepspeed.stage=3"
            )


def require_captured(loss_positions: str, fallback: str) -> None:
    """Raise ``ConfigError`` for capture settings that DeepSpeed's passes do not support."""
    remedy = "Set engine=plain, or leave this at its default"
    if loss_positions != "all":
        problem = f"got {loss_positions}, which needs a second backward pass; DeepSpeed runs one"
        raise ConfigError("capture.loss_positions", problem, remedy)
    if fallback != "none":
        problem = f"got {fallback}, which needs whole weights; DeepSpeed partitions them"
        raise ConfigError("capture.fallback", problem, remedy)
