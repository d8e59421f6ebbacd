"""Modular addition: a + b mod p, the task on which networks grok.

A datum is the tokens a, b and "="; its target is the sum. All p² pairs are datums, in random order,
so that ``corpus.test_share`` holds out random pairs.

Source: Power et al. 2022, "Grokking"; Nanda et al. 2023, "Progress measures for grokking via
mechanistic interpretability" (p = 113, 30 % of the pairs).
"""

from dataclasses import dataclass

import numpy as np

from capture.corpus.tasks.task import TaskDatums, in_random_order
from capture.errors import at_least, at_most

WINDOW = 3
"""Tokens of a datum: a, b and =."""


@dataclass(frozen=True, kw_only=True)
class ModularConfig:
    """Modular addition; used if corpus.kind is modular-addition."""

    modulus: int = 53
    """p: datums are the p² sums a + b mod p; at most 1,000."""
    seed: int = 0
    """Seed of the order of the pairs, and so of which are held out."""

    def __post_init__(self) -> None:
        at_least("corpus.modular.modulus", self.modulus, 2)
        at_most("corpus.modular.modulus", self.modulus, 1000)
        at_least("corpus.modular.seed", self.seed, 0)


def modular_addition(config: ModularConfig) -> TaskDatums:
    """Return all sums, in random order."""
    p = config.modulus
    a_N, b_N = np.divmod(in_random_order(p * p, config.seed), p)
    equals_N = np.full(p * p, p)
    token_NM = np.stack([a_N, b_N, equals_N, (a_N + b_N) % p], axis=1).astype(np.int32)
    return TaskDatums([*map(str, range(p)), "="], {"train": token_NM})
