"""Checkpoints of a custom loop: the first rank stores them, and every rank loads them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.format import checkpoint
from capture.format.markers import Marker
from capture.optim import step_counts
from capture.optim.optimizer_config import OptimizerConfig
from capture.store import Store


@dataclass(frozen=True)
class LoopCheckpoints:
    """Model and optimizer of a loop, and the last checkpoint of its run."""

    store: Store
    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: OptimizerConfig
    """Settings of the first unit's parameter group."""
    last: Marker
    """Marker of the last committed segment, or of the start."""

    def snapshot(self, step: int, rank: int) -> dict[str, Tensor]:
        """Return a copy of weights and optimizer state on the CPU; empty on all but rank 0."""
        if rank:
            return {}
        state = step_counts.snapshot(self.optimizer, self.model, step)
        return checkpoint.snapshot(self.model, state)

    def read(self) -> dict[str, Tensor]:
        """Return the last checkpoint; raises ``ShardError`` if it is damaged."""
        return checkpoint.read_checkpoint(self.store, self.last.end_step, self.last)

    def restore(self) -> None:
        """Load the last checkpoint; raises ``ShardError`` if it does not fit the model."""
        where = f"{self.store.uri}/{checkpoint.key_of(self.last.end_step)}"
        weights, state = checkpoint.split_checkpoint(self.read())
        checkpoint.restore(self.model, weights, where)
        step_counts.restore(
            self.optimizer,
            self.model,
            state,
            config=self.config,
            step=self.last.end_step,
            where=where,
        )
