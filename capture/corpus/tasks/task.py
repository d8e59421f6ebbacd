"""What a task gives: datums as rows of tokens, and the names of the tokens.

Shapes: N datum, M token of a datum and its last target (window + 1).
"""

from dataclasses import dataclass, field

import numpy as np

from capture.corpus.wikitext import Split


@dataclass(frozen=True, eq=False)
class TaskDatums:
    """The datums of a task by split. A task without splits of its own is all ``train``."""

    names: list[str]
    """Name of each token, by id."""
    token_NM: dict[Split, np.ndarray]
    """Tokens of each datum and its last target, int32."""
    texts: dict[Split, list[str]] = field(default_factory=dict)
    """A short text for each datum, where its tokens' names say too little."""


def in_random_order(count: int, seed: int) -> np.ndarray:
    """Return a permutation of 0 … count - 1, int64, the same in every version of NumPy."""
    return random_bits(seed, 0, count).argsort(kind="stable")


def random_bits(seed: int, purpose: int, count: int) -> np.ndarray:
    """Return random uint64, a stream of its own for each purpose."""
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(purpose,))).random_raw(count)


def random_integers(seed: int, purpose: int, count: int, below: int) -> np.ndarray:
    """Return random integers from 0 to below - 1, int64."""
    # The bias of the remainder is below / 2^64.
    return (random_bits(seed, purpose, count) % np.uint64(below)).astype(np.int64)
