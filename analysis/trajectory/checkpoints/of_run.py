"""Models of a run: at its checkpoints, and at steps in between, which are replayed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from analysis.run.custom_loop import no_model_error
from analysis.run.run import Run
from analysis.trajectory.observed.given import observable
from analysis.trajectory.observed.model import Network
from capture.models.transformer import AnyModel

CHECKPOINT, REPLAY = "checkpoint", "replay"


@dataclass(frozen=True, eq=False)
class RunCheckpoints:
    """The checkpoints of a run, as a source of models."""

    run: Run

    @property
    def where(self) -> str:
        return self.run.uri

    @property
    def replays(self) -> bool:
        return not self.run.from_custom_loop

    @property
    def available(self) -> list[int]:
        """Steps with a checkpoint: 0, and the end of each segment."""
        return [0, *(marker.end_step for marker in self.run.segments)]

    def source(self, step: int) -> str:
        return CHECKPOINT if step in self.available else REPLAY

    def models(self, steps: Sequence[int]) -> Iterator[Network]:
        """Yield the models after these numbers of steps, which ascend.

        Raises ``RunError`` for a run of a custom loop whose model is not given, and what replay
        raises.
        """
        for source, own in groupby(steps, self.source):
            yield from (self.replayed if source == REPLAY else self.stored)(list(own))

    def stored(self, steps: Sequence[int]) -> Iterator[Network]:
        return map(self.given if self.run.from_custom_loop else self.run.network, steps)

    def given(self, step: int) -> Network:
        """Return the model of a custom loop, which the user gave, after this number of steps."""
        known = self.run.given
        if known.module is None:
            raise no_model_error(self.run.uri)
        return observable(self.run.restored(known.copy(), step), known.parts)

    def replayed(self, steps: Sequence[int]) -> Iterator[AnyModel]:
        """Yield the models after these numbers of steps, taken again from the checkpoint before."""
        from capture.replay.steps import StepReplayer  # loads the training engine

        markers = [self.run.start, *self.run.segments]
        replayer = StepReplayer(self.run.gradients.replayable, markers)
        names = [name for name, _ in self.run.blank_model().named_parameters()]
        for _, weights in replayer.weights_at(steps, names, lambda: None):
            model = self.run.blank_model().eval().requires_grad_(False)
            for name, own in model.named_parameters():
                own.copy_(weights[name])
            yield model
