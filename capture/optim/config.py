"""Settings of training: epochs, batch, learning rate, clipping, precision, optimizer, schedule."""

from dataclasses import dataclass, field
from typing import Literal

from capture.errors import ConfigError, at_least
from capture.optim.optimizer_config import OptimizerConfig
from capture.optim.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the model is trained; the defaults are those of the study."""

    epochs: int = 5
    """Number of passes over the training datums."""
    batch: int = 20
    """Datums per step."""
    accumulate: int = 1
    """Micro-batches per batch, to save memory; must divide batch."""
    learning_rate: float = 5.0
    """Learning rate that the schedule multiplies."""
    decay: float = 0.95
    """Factor on the learning rate after each epoch, or after schedule.every_steps steps."""
    clip: float = 0.5
    """Largest norm of the gradient over the whole model; a larger gradient is scaled down to it.
    .inf: no clipping."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a CUDA device if there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; bfloat16 uses autocast and keeps weights in float32."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation_steps: int | None = None
    """Steps between two evaluations of the held-out splits; null: an epoch. The last step of the
    run is always followed by one."""
    order_seed: int | None = None
    """Seed of the order in which batches visit the datums; null: run.seed."""

    def __post_init__(self) -> None:
        at_least("training.order_seed", self.order_seed or 0, 0)
        if self.evaluation_steps is not None:
            at_least("training.evaluation_steps", self.evaluation_steps, 1)
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
