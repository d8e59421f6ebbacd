"""The weights that a shift found: those of the checkpoint at the start of its segment.

A checkpoint stands at the start of every segment of steps, so within a segment a weight is known as
it was up to that many steps earlier. For a sign or a size that is near enough: a segment is 100
steps by default, and one step's shift is small beside the weight.

Shapes: P captured parameter, M row.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from capture.format.checkpoint import read_checkpoint
from capture.gradients.layout import Layout
from capture.store.store import Store

CHECKPOINTS_KEPT = 4
"""In memory at once: 4 bytes a captured parameter each."""


@dataclass(frozen=True, eq=False)
class StartWeights:
    """Reads weights at the starts of segments; a plain value that reopens the run elsewhere."""

    store: Store
    """The run's."""
    layout: Layout
    first_steps: tuple[int, ...]
    """First step of every segment, ascending."""
    kept: OrderedDict[int, np.ndarray] = field(default_factory=OrderedDict, repr=False)
    lock: Any = field(default_factory=threading.Lock, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "layout": self.layout, "first_steps": self.first_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, kept=OrderedDict(), lock=threading.Lock())

    def of_rows(self, step_M: np.ndarray, place_M: np.ndarray) -> np.ndarray:
        """The weight of each row's parameter at the start of the segment of its step, float32."""
        if not len(step_M):
            return np.zeros(0, np.float32)
        segment_M = np.searchsorted(self.first_steps, step_M, side="right") - 1
        first, last = int(segment_M.min()), int(segment_M.max())
        if first == last:
            return self.at(self.first_steps[first])[place_M]
        weight_M = np.empty(len(step_M), np.float32)
        for segment in np.unique(segment_M):
            own_M = segment_M == segment
            weight_M[own_M] = self.at(self.first_steps[segment])[place_M[own_M]]
        return weight_M

    def at(self, step: int) -> np.ndarray:
        """The captured parameters after ``step`` updates, float32 [P]; raises ``ShardError``."""
        with self.lock:
            if step not in self.kept:
                tensors = read_checkpoint(self.store, step)
                self.kept[step] = self.layout.flatten(tensors).numpy()
                while len(self.kept) > CHECKPOINTS_KEPT:
                    self.kept.popitem(last=False)
            return self.kept[step]
