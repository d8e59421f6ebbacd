"""How a model learns: passes, batches, learning rate, clipping, precision, optimizer, schedule."""

from dataclasses import dataclass, field
from typing import Literal

from capture.errors import ConfigError
from capture.optim.optimizer import OptimizerConfig
from capture.optim.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the model learns; the defaults are the study's."""

    epochs: int = 5
    """Passes over the training datums."""
    batch: int = 20
    """Datums per step."""
    accumulate: int = 1
    """Micro-batches that a batch goes through in, for want of memory; must divide batch."""
    learning_rate: float = 5.0
    """The learning rate that the schedule starts from."""
    decay: float = 0.95
    """The learning rate is multiplied by this after every epoch, or as the schedule has it."""
    clip: float = 0.5
    """The gradient's norm over the whole model is clipped at this."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a CUDA device if there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass's products; bfloat16 means autocast, with weights in float32."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate"):
            if (found := getattr(self, name)) < 1:
                raise ConfigError(f"training.{name}", f"got {found}, must be at least 1")
        for name in ("learning_rate", "decay", "clip"):
            if not (found := getattr(self, name)) > 0:
                raise ConfigError(f"training.{name}", f"got {found}, must be above 0")
        if self.batch > 2**15:
            raise ConfigError("training.batch", f"got {self.batch}, must be at most {2**15}")
        if self.batch % self.accumulate:
            problem = f"got {self.accumulate}, must divide training.batch = {self.batch}"
            raise ConfigError("training.accumulate", problem)
