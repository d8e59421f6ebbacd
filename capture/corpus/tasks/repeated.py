"""Repeated random sequences, the task on which induction heads form.

A datum is a random sequence of random length that is repeated until the window is full. In the
first pass no token can be foretold; afterwards every token can, by looking for the last occurrence
of the present token and copying what followed. Lengths are random because a fixed length can be
solved by always looking the same number of positions back, which takes no induction head.

Source: Olsson et al. 2022, "In-context learning and induction heads".
Shapes: N datum, M token of a datum and its last target.
"""

from dataclasses import dataclass

import numpy as np

from capture.corpus.tasks.task import TaskDatums, random_integers
from capture.errors import ConfigError, at_least, at_most


@dataclass(frozen=True, kw_only=True)
class RepeatedConfig:
    """Repeated sequences; used if corpus.kind is repeated."""

    datums: int = 8192
    """Number of datums."""
    tokens: int = 64
    """Number of distinct tokens, all equally frequent."""
    shortest: int = 6
    """Shortest sequence that is repeated."""
    longest: int = 24
    """Longest sequence that is repeated."""
    seed: int = 0
    """Seed of sequences and lengths."""

    def __post_init__(self) -> None:
        for name, most in (("datums", 10**7), ("tokens", 10**5), ("shortest", self.longest)):
            at_least(f"corpus.repeated.{name}", getattr(self, name), 1)
            at_most(f"corpus.repeated.{name}", getattr(self, name), most)
        at_least("corpus.repeated.seed", self.seed, 0)

    def require_repetition(self, window: int) -> None:
        """Raise ``ConfigError`` unless every datum repeats its sequence at least once."""
        if 2 * self.longest > window + 1:
            problem = f"got {self.longest}, must be at most {(window + 1) // 2}, half of the "
            problem += "window and its last target"
            raise ConfigError("corpus.repeated.longest", problem, "Or raise corpus.window")


def repeated_sequences(config: RepeatedConfig, window: int) -> TaskDatums:
    """Return the datums; each repeats a sequence of its own."""
    count, longest = config.datums, config.longest
    new_NL = random_integers(config.seed, 0, count * longest, config.tokens).reshape(count, longest)
    lengths = longest - config.shortest + 1
    length_N1 = config.shortest + random_integers(config.seed, 1, count, lengths)[:, None]
    token_NM = np.take_along_axis(new_NL, np.arange(window + 1) % length_N1, axis=1)
    names = [f"t{number}" for number in range(config.tokens)]
    return TaskDatums(names, {"train": token_NM.astype(np.int32)})
