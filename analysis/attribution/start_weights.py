"""Value of a row's parameter, taken from the checkpoint at the start of the row's segment.

There is one checkpoint at the start of every segment, so the value is up to a segment's steps old
(100 by default). That is accurate enough for its sign and magnitude, as shifts of single steps are
small compared with the weight.

Shapes: P captured parameter, M row.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from capture.format.checkpoint import read_checkpoint
from capture.gradients.layout import Layout
from capture.store import Store

CHECKPOINTS_KEPT = 4
"""Checkpoints in memory at once; each takes 4 bytes per captured parameter."""


@dataclass(frozen=True, eq=False)
class StartWeights:
    """Reads weights at the starts of segments; can be pickled, without the weights it holds."""

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

    def of_rows(self, step_M: np.ndarray, parameter_M: np.ndarray) -> np.ndarray:
        """Return each row's parameter at the start of the segment of its step, float32 [M]."""
        if not len(step_M):
            return np.zeros(0, np.float32)
        segment_M = np.searchsorted(self.first_steps, step_M, side="right") - 1
        first, last = int(segment_M.min()), int(segment_M.max())
        if first == last:
            return self.at(self.first_steps[first])[parameter_M]
        weight_M = np.empty(len(step_M), np.float32)
        for segment in np.unique(segment_M):
            own_M = segment_M == segment
            weight_M[own_M] = self.at(self.first_steps[segment])[parameter_M[own_M]]
        return weight_M

    def at(self, step: int) -> np.ndarray:
        """Return the captured parameters after ``step`` updates, float32 [P].

        Raises ``ShardError`` for a damaged checkpoint.
        """
        with self.lock:
            if step not in self.kept:
                tensors = read_checkpoint(self.store, step)
                self.kept[step] = self.layout.flatten(tensors).numpy()
                while len(self.kept) > CHECKPOINTS_KEPT:
                    self.kept.popitem(last=False)
            return self.kept[step]
