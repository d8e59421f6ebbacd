"""What ``ontogeny quanta`` is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.trajectory.config import SplitChoice, TrajectoryConfig
from capture.errors import ConfigError, at_least


@dataclass(frozen=True, kw_only=True)
class QuantaConfig:
    """Which positions to group, into how many clusters, and at which checkpoints to follow them."""

    clusters: int = 10
    """Number of clusters, by gradients and by loss curves alike."""
    positions: int = 400
    """Positions of the text, drawn at random. Time and memory grow with their square."""
    units: Sequence[str] = ()
    """Patterns of the parameters whose gradients are compared, one may stand without a list; empty
    for the matrices of the layers, without embeddings (Michaud et al. 2023)."""
    steps: str | Sequence[int] = "log"
    """Checkpoints to measure, as in ``TrajectoryConfig.steps``. 8 or more are needed, so a run with
    fewer checkpoints is replayed for log."""
    checkpoints: int = 30
    """Number of checkpoints to choose if ``steps`` is log."""
    split: SplitChoice = ""
    """Text of the positions; by default the validation split, else test, else train."""
    draws: int = 20
    """Draws of shuffled gradients, and of shuffled loss curves."""
    seed: int = 0
    """Seed of the positions, the shuffles and the clusters."""

    def __post_init__(self) -> None:
        units = (self.units,) if isinstance(self.units, str) else tuple(self.units)
        object.__setattr__(self, "units", units)
        at_least("--clusters", self.clusters, 2)
        at_least("--draws", self.draws, 1)
        if self.positions < 4 * self.clusters:
            problem = f"got {self.positions}, too few for {self.clusters} clusters"
            raise ConfigError("--positions", problem, f"Give {4 * self.clusters} or more")
        object.__setattr__(self, "steps", self.checkpoints_chosen.steps)

    @property
    def checkpoints_chosen(self) -> TrajectoryConfig:
        """Checkpoints and text of a trajectory; raises what ``TrajectoryConfig`` raises."""
        chosen = {"steps": self.steps, "checkpoints": self.checkpoints, "split": self.split}
        return TrajectoryConfig(**chosen, datums=10**9, seed=self.seed)
