"""Statistics of every neuron's activations, by token.

What is measured, as a rule the inputs of the MLP units, is in ``analysis.activations.quantities``.
Positions are grouped by a label, usually their target token or their input token. Each datum takes
one forward pass. The four sums kept for each label and neuron merge over
blocks of datums in any split and order (law 6). ``map_block``, ``merge`` and ``finish`` are the
three functions of the job over such blocks.

Memory: 24 bytes per label and neuron while measuring, 16 afterwards. For all tokens of the study's
vocabulary (28,782) and its six units (1,200 neurons) these are 0.8 GB and 0.55 GB. ``units`` limits
the measurement to some units.

Shapes: N datum, T position, M position of any datum, V label (token), K label that occurs,
I neuron of a unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from analysis.activations.quantities import Quantity, Report, activation_blocks, units_of
from capture.parts import KnownModel

By = Literal["target", "input"]
"""A position's label: its target token, or its input token."""


# --- statistics by label --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Statistics:
    """Activations of a unit's neurons over each label's positions; NaN for a label without any."""

    count_V: np.ndarray
    """Number of positions, int64."""
    mean_VI: np.ndarray
    """float32, like the others."""
    std_VI: np.ndarray
    """Population standard deviation: the divisor is the number of positions."""
    min_VI: np.ndarray
    max_VI: np.ndarray


@dataclass(frozen=True, eq=False)
class ActivationSums:
    """Mergeable sums and extremes behind a unit's ``Statistics``."""

    total_VI: np.ndarray
    """Σ x, float64."""
    square_VI: np.ndarray
    """Σ x², float64."""
    min_VI: np.ndarray
    """float32, ∞ for labels without positions."""
    max_VI: np.ndarray
    """float32, -∞ for labels without positions."""

    @classmethod
    def none(cls, num_labels: int, num_neurons: int) -> "ActivationSums":
        shape = num_labels, num_neurons
        lowest, highest = np.full(shape, np.inf, np.float32), np.full(shape, -np.inf, np.float32)
        return cls(np.zeros(shape), np.zeros(shape), lowest, highest)

    def add(self, rows: "LabelGroups", x_MI: np.ndarray) -> None:
        """Add the activations of some positions, grouped by label, in place."""
        x_MI, label_K, first_K = x_MI[rows.order_M], rows.label_K, rows.first_K
        self.total_VI[label_K] += np.add.reduceat(x_MI, first_K, dtype=np.float64)
        self.square_VI[label_K] += np.add.reduceat(np.square(x_MI, dtype=np.float64), first_K)
        lowest_KI, highest_KI = (f.reduceat(x_MI, first_K) for f in (np.minimum, np.maximum))
        self.min_VI[label_K] = np.minimum(self.min_VI[label_K], lowest_KI)
        self.max_VI[label_K] = np.maximum(self.max_VI[label_K], highest_KI)

    def merge(self, other: "ActivationSums") -> "ActivationSums":
        return ActivationSums(
            self.total_VI + other.total_VI,
            self.square_VI + other.square_VI,
            np.minimum(self.min_VI, other.min_VI),
            np.maximum(self.max_VI, other.max_VI),
        )

    def statistics(self, count_V: np.ndarray) -> Statistics:
        count_V1 = np.where(count_V > 0, count_V, np.nan)[:, None]
        mean_VI = self.total_VI / count_V1
        variance_VI = self.square_VI / count_V1 - mean_VI**2
        variance_VI[self.min_VI == self.max_VI] = 0  # rounding leaves a little
        std_VI = np.sqrt(np.maximum(variance_VI, 0))
        seen_V1 = count_V[:, None] > 0
        lowest_VI, highest_VI = (np.where(seen_V1, x, np.nan) for x in (self.min_VI, self.max_VI))
        values = (mean_VI, std_VI, lowest_VI, highest_VI)
        return Statistics(count_V, *(value_VI.astype(np.float32) for value_VI in values))


@dataclass(frozen=True, eq=False)
class LabelGroups:
    """Positions grouped by label; positions labelled -1 are left out."""

    order_M: np.ndarray
    """Flat positions, sorted by label."""
    label_K: np.ndarray
    """Labels that occur, ascending."""
    first_K: np.ndarray
    """Index in ``order_M`` of each label's first position."""
    count_K: np.ndarray

    @classmethod
    def of(cls, label_M: np.ndarray) -> "LabelGroups":
        labelled_M = np.flatnonzero(label_M >= 0)
        order_M = labelled_M[np.argsort(label_M[labelled_M], kind="stable")]
        found = np.unique(label_M[order_M], return_index=True, return_counts=True)
        return cls(order_M, *found)


@dataclass(frozen=True, eq=False)
class PartialSums:
    """Partial result: the sums over some datums."""

    count_V: np.ndarray
    units: dict[str, ActivationSums]


@dataclass(frozen=True, eq=False)
class MeasureActivations:
    """Job over blocks of datums: activations by label. The model is part of the job."""

    model: KnownModel
    units: tuple[str, ...]
    num_labels: int
    quantity: Quantity = "inputs"

    def map_block(
        self, token_NT: np.ndarray, label_NT: np.ndarray, report: Report | None = None
    ) -> PartialSums:
        """Sum over a block of datums; a label is below ``num_labels``, or -1 for none."""
        assert token_NT.shape == label_NT.shape
        sizes = units_of(self.model, self.quantity)
        count_V = np.zeros(self.num_labels, np.int64)
        sums = {unit: ActivationSums.none(self.num_labels, sizes[unit]) for unit in self.units}
        measured = (self.model, token_NT, self.units, self.quantity)
        for block, inputs in activation_blocks(*measured, report):
            rows = LabelGroups.of(label_NT[block].ravel())
            count_V[rows.label_K] += rows.count_K
            if len(rows.label_K):
                for unit, x_NTI in inputs.items():
                    sums[unit].add(rows, x_NTI.reshape(-1, x_NTI.shape[2]))
        return PartialSums(count_V, sums)

    def merge(self, a: PartialSums, b: PartialSums) -> PartialSums:
        merged = {unit: a.units[unit].merge(b.units[unit]) for unit in self.units}
        return PartialSums(a.count_V + b.count_V, merged)

    def finish(self, partial: PartialSums) -> dict[str, Statistics]:
        return {unit: sums.statistics(partial.count_V) for unit, sums in partial.units.items()}


@dataclass(frozen=True, eq=False)
class MeasureBlock:
    """Sweep work: ``MeasureActivations`` over blocks of one text."""

    job: MeasureActivations
    token_NT: np.ndarray
    label_NT: np.ndarray

    def to(self, device: str) -> "MeasureBlock":
        job = replace(self.job, model=self.job.model.to(device))
        return MeasureBlock(job, self.token_NT, self.label_NT)

    def __call__(self, block: slice) -> PartialSums:
        return self.job.map_block(self.token_NT[block], self.label_NT[block])


def activation_statistics(
    model: KnownModel,
    token_NT: np.ndarray,
    target_NT: np.ndarray,
    num_tokens: int,
    by: By = "target",
    report: Report | None = None,
    units: Sequence[str] | None = None,
) -> dict[str, Statistics]:
    """Return unit → statistics by token of the vocabulary; by default of all MLP units."""
    job = MeasureActivations(model, tuple(units or units_of(model)), num_tokens)
    label_NT = target_NT if by == "target" else token_NT
    return job.finish(job.map_block(token_NT, label_NT, report))


# --- the baseline ---------------------------------------------------------------------------------


def activation_scores(stats: Statistics) -> np.ndarray:
    """Return how much each token stands out in each neuron's activations, float32 [V, I].

    The score is |mean at the token − mean of all positions| / standard deviation of all positions,
    and 0 for tokens without positions and for constant neurons. ``stats`` must cover every
    position, so that the overall mean and deviation follow from it.
    """
    seen_V = np.flatnonzero(stats.count_V)
    share_V = stats.count_V[seen_V] / stats.count_V.sum()
    mean_VI = stats.mean_VI[seen_V].astype(np.float64)
    away_VI = np.abs(mean_VI - share_V @ mean_VI)
    # Total variance = mean variance within tokens + variance of the tokens' means.
    variance_I = share_V @ (stats.std_VI[seen_V].astype(np.float64) ** 2 + away_VI**2)
    varies_I = stats.min_VI[seen_V].min(0) < stats.max_VI[seen_V].max(0)
    score_VI = np.zeros(stats.mean_VI.shape, np.float32)
    score_VI[seen_V] = np.where(varies_I, away_VI / np.sqrt(np.where(varies_I, variance_I, 1)), 0)
    return score_VI
