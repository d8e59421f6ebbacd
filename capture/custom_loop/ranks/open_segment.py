"""The segment that a loop fills: where it ends, its checkpoint, and when it is stored.

A full segment stays open until the next step begins, so that evaluations of the loop belong to it.
"""

from torch import Tensor

from capture.custom_loop.causes import require_unchanged
from capture.custom_loop.checks.unchecked import Unchecked
from capture.custom_loop.ranks.recorded_loop import RecordedLoop
from capture.gradients.layout import Layout
from capture.training.recorder import Recorder


class OpenSegment:
    """The segment that is being recorded. All ranks must call its methods alike."""

    def __init__(
        self, recorder: Recorder, loop: RecordedLoop, layout: Layout, unchecked: Unchecked
    ) -> None:
        self.recorder, self.loop, self.layout = recorder, loop, layout
        self.unchecked = unchecked
        self.full: dict[str, Tensor] | None = None
        """Checkpoint of the segment once it is full."""

    def end(self, step: int, after_P: Tensor | None) -> None:
        """End the segment after ``step`` steps of the run, unless it has none, or is full.

        ``after_P``: the captured weights as the last step left them. Raises ``RunError`` on all
        ranks if the loop has changed them since.
        """
        if self.full is None and self.recorder.open.steps:
            self.full = self.checkpoint(step, after_P)

    def checkpoint(self, step: int, after_P: Tensor | None) -> dict[str, Tensor]:
        """Return the checkpoint of a segment that ends now."""
        checkpoints, ranks = self.loop.checkpoints, self.loop.ranks
        checkpoints.state.refresh()
        weights_P = self.layout.flatten(checkpoints.state.units)
        tensors = checkpoints.snapshot(step, ranks.rank)
        ranks.attempt(lambda: require_unchanged(self.layout, after_P, weights_P, step))
        ranks.agree(f"the checkpoint of step {step}")
        return tensors

    def commit(self) -> None:
        """Store the segment if it is full."""
        if self.full is not None:
            tensors, self.full = self.full, None
            self.recorder.open.unchecked = self.unchecked.take()
            self.recorder.commit(tensors)
