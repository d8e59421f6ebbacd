"""What a trajectory needs of the place that its models come from."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from analysis.trajectory.observed.model import Network, Observed


class Source(Protocol):
    """Checkpoints of one training."""

    @property
    def where(self) -> str:
        """Name of the place, for errors."""
        ...

    @property
    def available(self) -> Sequence[int]:
        """Steps with a checkpoint, ascending."""
        ...

    @property
    def replays(self) -> bool:
        """Whether steps without a checkpoint can be asked for."""
        ...

    def source(self, step: int) -> str:
        """Where the model of a step comes from."""
        ...

    def models(self, steps: Sequence[int]) -> Iterator[Network]:
        """Yield the models after these numbers of steps, which ascend."""
        ...


def observe(source: Source, steps: Sequence[int]) -> Iterator[Observed]:
    """Yield the models at these steps in order; each knows the two before it."""
    before = None
    for step, network in zip(steps, source.models(steps), strict=True):
        if before is not None and before.before is not None:
            before.before.before = None  # three models are held at most
        before = Observed(step, network, before)
        yield before
