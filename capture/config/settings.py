"""The settings of a run as frozen dataclasses; `configs/*.yaml` and `key=value` fill them."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from capture.config.records import FactorConfig, RecordKind
from capture.corpus.datums import CorpusConfig
from capture.errors import ConfigError
from capture.gradients.vmap_fallback import Fallback
from capture.models.transformer import ModelConfig
from capture.optim.config import TrainingConfig
from capture.optim.deepspeed_config import DeepSpeedConfig, require_captured
from capture.process_group import WorkersConfig, require_share
from capture.shifts.outliers import OutlierConfig
from capture.shifts.tallies import TallyConfig
from capture.store.config import StoreConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run as a whole."""

    uri: str = "runs/run"
    """Where the run goes: a folder, s3://bucket/prefix, or another URI that fsspec knows."""
    seed: int = 0
    """Decides initial weights, batch order and dropout; at least 0."""
    loop: Literal["capture", "own"] = "capture"
    """Who trains: ``ontogeny capture``, or (own) a custom training loop under ``record``. Then
    model, corpus and training hold only what ``record`` could see."""

    def __post_init__(self) -> None:
        if not self.uri:
            raise ConfigError("run.uri", "is empty, must name a folder or a prefix")
        if self.seed < 0:
            raise ConfigError("run.seed", f"got {self.seed}, must be at least 0")


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """What is recorded of the training."""

    record: Literal["shifts", "checkpoints"] = "shifts"
    """Outliers, tallies and factors as set below; or checkpoints alone, to replay from."""
    units: list[str] = field(default_factory=lambda: ["layers.*"])
    """Glob patterns over parameter names; what matches any of them is captured."""
    fallback: Fallback = "none"
    """What becomes of units whose use has no factors: refused, or captured by vmap (slow)."""
    loss_positions: Literal["all", "last"] = "all"
    """Shifts of the whole window's loss, or of its last token's alone (as the study's code had)."""
    audit_tolerance: float = 1e-5
    """Training stops when Σ shifts misses the applied change by more than this, relatively."""
    segment_steps: int = 100
    """Steps per segment: the unit of writing and resuming, with a checkpoint at each end."""
    outliers: OutlierConfig = field(default_factory=OutlierConfig)
    tally: TallyConfig = field(default_factory=TallyConfig)
    factors: FactorConfig = field(default_factory=FactorConfig)

    def __post_init__(self) -> None:
        if not self.units:
            raise ConfigError("capture.units", "is empty, must hold at least one pattern")
        if not self.audit_tolerance > 0:
            problem = f"got {self.audit_tolerance}, must be above 0"
            raise ConfigError("capture.audit_tolerance", problem)
        if self.segment_steps < 1:
            problem = f"got {self.segment_steps}, must be at least 1"
            raise ConfigError("capture.segment_steps", problem)
        if self.record == "checkpoints" and self.factors.enabled:
            problem = "got true, but capture.record is checkpoints, which records nothing else"
            raise ConfigError("capture.factors.enabled", problem, "Add them by: ontogeny replay")

    @property
    def kinds(self) -> frozenset[RecordKind]:
        """What is recorded of each step while training runs."""
        if self.record == "checkpoints":
            return frozenset()
        chosen: dict[RecordKind, bool] = {
            "outliers": True,
            "tallies": self.tally.enabled,
            "factors": self.factors.enabled,
        }
        return frozenset(kind for kind, wanted in chosen.items() if wanted)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run; the defaults are the study's, on the embedded text."""

    run: RunConfig = field(default_factory=RunConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    engine: Literal["plain", "deepspeed"] = "plain"
    """What takes the steps: torch as it is, or DeepSpeed, which partitions them among workers."""
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)

    def __post_init__(self) -> None:
        if self.engine == "deepspeed":
            require_captured(self.capture.loss_positions, self.capture.fallback)
        training = self.training
        require_share(self.workers, batch=training.batch, accumulate=training.accumulate)


def require_ours(config: Config, problem: str, remedy: str) -> None:
    """Raises ``ConfigError`` for a run of a training loop that is not ours."""
    if config.run.loop == "own":
        raise ConfigError(
            "run.loop", f"is own (made by capture.custom_loop.record), but {problem}", remedy
        )


def to_values(config: Config) -> dict[str, Any]:
    """Nested plain values, as they stand in YAML."""
    return asdict(config)
