"""All settings of a run, as frozen dataclasses that YAML and ``key=value`` overrides fill."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from capture.config.records import FactorConfig, RecordKind
from capture.corpus.config import CorpusConfig
from capture.errors import ConfigError
from capture.gradients.vmap_fallback import Fallback
from capture.interventions.config import InterventionConfig
from capture.models.transformer import ModelConfig
from capture.optim.config import TrainingConfig
from capture.optim.deepspeed_config import DeepSpeedConfig, require_captured
from capture.process_group import WorkersConfig, require_equal_shares
from capture.shifts.outliers import OutlierConfig
from capture.shifts.recorded_steps import any_chosen
from capture.shifts.tallies import TallyConfig
from capture.store.config import StoreConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of the run as a whole."""

    uri: str = "runs/run"
    """Where the run is written: a folder, s3://bucket/prefix, or another URI that fsspec knows."""
    seed: int = 0
    """Seed of the initial weights, the batch order and dropout; at least 0. model.seed and
    training.order_seed vary the first two apart."""
    loop: Literal["capture", "own"] = "capture"
    """capture: ``ontogeny capture`` trains the model. own: a custom training loop trains it under
    ``record``; model, corpus and training then hold only what ``record`` could see."""

    def __post_init__(self) -> None:
        if not self.uri:
            raise ConfigError("run.uri", "is empty, must name a folder or a prefix")
        if self.seed < 0:
            raise ConfigError("run.seed", f"got {self.seed}, must be at least 0")


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """Settings of what is recorded during training."""

    record: Literal["shifts", "checkpoints"] = "shifts"
    """shifts: outliers, tallies and factors as set below. checkpoints: nothing but checkpoints,
    from which a replay can add the others."""
    units: list[str] = field(default_factory=lambda: ["layers.*"])
    """Glob patterns over parameter names. A parameter that matches any of them is captured."""
    fallback: Fallback = "none"
    """none: refuse a unit whose gradient has no factors. vmap: capture it by vmap, slowly."""
    loss_positions: Literal["all", "last"] = "all"
    """Record shifts of the loss of all positions, or of the last position only, as the study's
    code did."""
    audit_tolerance: float = 1e-5
    """Training stops when Σ shifts + carry differs from the applied change by more than this,
    relative to the applied change."""
    segment_steps: int = 100
    """Steps per segment. A segment is written and resumed as a whole and ends with a checkpoint."""
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
        if self.record == "shifts" and not self.kinds:
            problem = "is shifts, but outliers, tallies and factors are all off"
            remedy = "Enable one of them, or set capture.record=checkpoints"
            raise ConfigError("capture.record", problem, remedy)

    @property
    def kinds(self) -> frozenset[RecordKind]:
        """The kinds of record that are made while training runs."""
        if self.record == "checkpoints":
            return frozenset()
        chosen: dict[RecordKind, bool] = {
            "outliers": self.outliers.enabled,
            "tallies": self.tally.enabled,
            "factors": self.factors.enabled,
        }
        return frozenset(kind for kind, wanted in chosen.items() if wanted)

    def leaves_out(self, kind: RecordKind, step: int) -> bool:
        """Whether the segment of a step is recorded without this kind, by its ``steps``."""
        first = step - step % self.segment_steps
        entries = {"outliers": self.outliers.steps, "factors": self.factors.steps}.get(kind, [])
        return not any_chosen(entries, range(first, first + self.segment_steps))

    def records(self, kind: RecordKind, step: int) -> bool:
        """Whether this kind of record is made of a step while training runs."""
        return kind in self.kinds and not self.leaves_out(kind, step)

    def at_every_step(self) -> "CaptureConfig":
        """Return the same settings, with no segment left out."""
        outliers, factors = replace(self.outliers, steps=[]), replace(self.factors, steps=[])
        return replace(self, outliers=outliers, factors=factors)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run. The defaults are the study's, on the text that Python carries."""

    run: RunConfig = field(default_factory=RunConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    intervention: InterventionConfig = field(default_factory=InterventionConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    engine: Literal["plain", "deepspeed"] = "plain"
    """plain: train with torch alone. deepspeed: partition the model's state among workers."""
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)

    def __post_init__(self) -> None:
        if self.engine == "deepspeed":
            require_captured(self.capture.loss_positions, self.capture.fallback)
        training = self.training
        require_equal_shares(self.workers, batch=training.batch, accumulate=training.accumulate)

    @property
    def weight_seed(self) -> int:
        """Seed of the initial weights."""
        return self.run.seed if self.model.seed is None else self.model.seed

    @property
    def order_seed(self) -> int:
        """Seed of the order in which batches visit the datums."""
        own = self.training.order_seed
        return self.run.seed if own is None else own


def require_capture_loop(config: Config, problem: str, remedy: str) -> None:
    """Raise ``ConfigError`` for a run that a custom training loop made."""
    if config.run.loop == "own":
        raise ConfigError(
            "run.loop", f"is own (made by capture.custom_loop.record), but {problem}", remedy
        )


def to_values(config: Config) -> dict[str, Any]:
    """Convert a configuration to nested plain values, as in YAML."""
    return asdict(config)
