"""What ``ontogeny transitions`` is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

from capture.errors import ConfigError, at_least, at_most


@dataclass(frozen=True, kw_only=True)
class TransitionsConfig:
    """Which curves to test, against how many null curves, and what to say about the record."""

    metrics: Sequence[str] = ()
    """Names of metrics, one may stand without a list; empty for all that the runs have, without
    those of single parameter tensors."""
    trajectory: str = ""
    """Name of the tables of ``ontogeny trajectory`` to read; "" for the unnamed ones."""
    target: str = ""
    """Metric that others may foretell; "" for an accuracy, or else a loss on held-out text."""
    around: str = ""
    """Curve whose transition is the window of the record, as METRIC or METRIC:COMPONENT; "" for
    the target."""
    draws: int = 199
    """Null curves of each kind, and draws of each bootstrap."""
    states: int = 8
    """Largest number of hidden states to try; 0 fits no hidden Markov model."""
    record: bool = True
    """Compare the recorded shifts inside the window with those before and after it."""
    seed: int = 0

    def __post_init__(self) -> None:
        metrics = (self.metrics,) if isinstance(self.metrics, str) else tuple(self.metrics)
        object.__setattr__(self, "metrics", metrics)
        at_least("transitions.draws", self.draws, 99)
        at_least("transitions.states", self.states, 0)
        at_most("transitions.states", self.states, 20)
        at_least("transitions.seed", self.seed, 0)
        if len(set(self.metrics)) < len(self.metrics):
            raise ConfigError("transitions.metrics", f"names one twice: {', '.join(self.metrics)}")
