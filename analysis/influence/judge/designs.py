"""Which retrainings to make: weights of the training datums, in all steps or in one.

Shapes: Q query, D datum, M retraining.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from analysis.influence.queries.query import Query

Sort = Literal["removal", "duplication"]
SORTS: tuple[Sort, ...] = get_args(Sort)


@dataclass(frozen=True, eq=False)
class Variation:
    """A retraining: the weight of each datum's loss, 1 as in the run, in some steps or in all."""

    weight_D: np.ndarray
    """float64; 0 leaves a datum out, 2 counts it twice."""
    steps: range | None = None
    """Steps in which the weights hold; None: in all."""

    @property
    def name(self) -> str:
        """A name that follows from the content, so that an equal retraining is found again."""
        digest = hashlib.sha256(np.ascontiguousarray(self.weight_D, np.float64).tobytes())
        digest.update(repr(self.steps and (self.steps.start, self.steps.stop)).encode())
        return digest.hexdigest()[:20]


def random_subsets(num_datums: int, *, keep: float, count: int, seed: int) -> list[Variation]:
    """Return retrainings on random subsets of round(keep · D) datums, drawn independently."""
    rng = np.random.default_rng([seed, round(keep * 10**6)])
    kept = round(keep * num_datums)
    found = []
    for _ in range(count):
        weight_D = np.zeros(num_datums)
        weight_D[rng.choice(num_datums, kept, replace=False)] = 1.0
        found.append(Variation(weight_D))
    return found


def named_datums(query: Query, score_D: np.ndarray, count: int) -> np.ndarray:
    """Return the datums that made a query what a user prefers: of largest score, ties to the first.

    Of a loss, these are the datums that lowered it most; of all other queries, those that raised
    it most.
    """
    helped_D = -score_D if query.better == "lower" else score_D
    return np.argsort(-helped_D, kind="stable")[:count]


def reweighted(num_datums: int, datums: Sequence[int] | np.ndarray, sort: Sort) -> Variation:
    """Return the retraining without these datums, or with each of them counted twice."""
    weight_D = np.ones(num_datums)
    weight_D[np.asarray(datums)] = 0.0 if sort == "removal" else 2.0
    return Variation(weight_D)


def random_datums(num_datums: int, *, number: int, count: int, seed: int) -> list[np.ndarray]:
    """Return ``count`` random sets of ``number`` datums: the control of removal."""
    rng = np.random.default_rng([seed, number])
    return [rng.choice(num_datums, number, replace=False) for _ in range(count)]


@dataclass(frozen=True)
class Removal:
    """One datum, left out of one step."""

    step: int
    slot: int
    datum: int

    def variation(self, num_datums: int) -> Variation:
        weight_D = np.ones(num_datums)
        weight_D[self.datum] = 0.0
        return Variation(weight_D, range(self.step, self.step + 1))


def random_removals(steps: range, datum_SN: np.ndarray, *, count: int, seed: int) -> list[Removal]:
    """Return distinct random (step, slot) pairs; fewer than ``count`` if there are fewer.

    ``datum_SN``: the datum in each slot of each of the steps.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(datum_SN.size)[:count]
    rows, slots = np.unravel_index(np.sort(chosen), datum_SN.shape)
    return [
        Removal(steps[row], int(slot), int(datum_SN[row, slot]))
        for row, slot in zip(rows, slots, strict=True)
    ]
