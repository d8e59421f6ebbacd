"""Checkpoints of a custom loop: the first rank stores them, and every rank loads them."""

from dataclasses import dataclass

from torch import Tensor

from capture.custom_loop.ranks.loop_state import PlainState
from capture.format import checkpoint
from capture.format.markers import Marker
from capture.optim.optimizer_config import OptimizerConfig
from capture.store import Store


@dataclass(frozen=True)
class LoopCheckpoints:
    """Model and optimizer of a loop, and the last checkpoint of its run."""

    store: Store
    state: PlainState
    config: OptimizerConfig
    """Settings of the first unit's parameter group."""
    last: Marker
    """Marker of the last committed segment, or of the start."""

    def snapshot(self, step: int, rank: int) -> dict[str, Tensor]:
        """Return a copy of weights and optimizer state on the CPU; empty on all but rank 0."""
        return self.state.snapshot(step, rank)

    def read(self) -> dict[str, Tensor]:
        """Return the last checkpoint; raises ``ShardError`` if it is damaged."""
        return checkpoint.read_checkpoint(self.store, self.last.end_step, self.last)

    def restore(self) -> None:
        """Load the last checkpoint; raises ``ShardError`` if it does not fit the model."""
        where = f"{self.store.uri}/{checkpoint.key_of(self.last.end_step)}"
        self.state.restore(self.read(), self.config, self.last.end_step, where)
