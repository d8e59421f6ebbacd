"""Settings of a trajectory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from capture.errors import ConfigError, at_least

SplitChoice = Literal["", "train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    """Which metrics to measure, at which checkpoints, on how much text."""

    metrics: Sequence[str] = ()
    """Names of metrics, or ``module:function`` of your own; empty: all that the model can give. One
    may stand without a list."""
    steps: str | Sequence[int] = "log"
    """log: the run's own checkpoints, log-spaced; all: all of them; or a list such as 0,10,20:100:5
    (first, end, spacing) or (0, 10), whose steps without a checkpoint are replayed."""
    checkpoints: int = 12
    """Number of checkpoints to choose if ``steps`` is log."""
    split: SplitChoice = ""
    """Text to predict; by default the validation split, else test, else train."""
    datums: int = 200
    """Datums of the split to predict, evenly spread; also the number of random sequences, at most
    100."""
    seed: int = 0
    """Seed of random tokens and permutations."""
    concept: str | None = None
    """JSON lines with prompts and completions, or texts and labels, for ``completion_…`` and
    ``probe``."""
    shots: int = 0
    """Other examples of the concept in front of each prompt."""

    dependencies: str | None = None
    """File of sentences with their syntax in the CoNLL-U format, for ``syntactic_heads``."""
    components: int = 0
    """Principal components of held-out losses and logits over the checkpoints, and where their
    path turns; 0: none. Turns are sought in the first two, so 1 is refused."""
    paths: Sequence[str] = ()
    """Pairs of components for ``path_patching``, as in L0H1:L1H2, L0MLP:L1H0 or L1H2:logits; one
    may stand without a list; empty for all heads, if there are few."""

    def __post_init__(self) -> None:
        paths = (self.paths,) if isinstance(self.paths, str) else tuple(self.paths)
        object.__setattr__(self, "paths", paths)
        metrics = (self.metrics,) if isinstance(self.metrics, str) else tuple(self.metrics)
        object.__setattr__(self, "metrics", metrics)
        if not isinstance(self.steps, str):
            object.__setattr__(self, "steps", ",".join(str(step) for step in self.steps))
        at_least("--checkpoints", self.checkpoints, 2)
        at_least("--datums", self.datums, 2)
        at_least("--seed", self.seed, 0)
        at_least("--shots", self.shots, 0)
        at_least("--components", self.components, 0)
        if self.components == 1:
            problem = (
                "got 1, must be 0 (none) or at least 2, because a path turns in two dimensions"
            )
            raise ConfigError("--components", problem)
        if self.shots and self.concept is None:
            raise ConfigError("--shots", "is given without --concept", "Give a file of examples")
        if self.split not in ("", "train", "validation", "test"):
            problem = f"got {self.split!r}, must be train, validation or test"
            raise ConfigError("--split", problem)
