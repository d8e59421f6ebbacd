"""Influences of single steps, added up by datum, position, unit and window of training.

Contributions that the horizon calls unreliable (``capture.unrolled.horizon``) are added up apart.

Memory: 8 bytes for each query, training datum and position.

Shapes: Q query, D training datum, N datum of a step (slot), T position, W window, U unit, S step.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np

from analysis.influence.sweeps import SweepStep
from capture.unrolled.horizon import LIMIT


@dataclass(frozen=True)
class SumShape:
    """Sizes of the sums."""

    queries: int
    datums: int
    positions: int
    units: int
    windows: tuple[range, ...]
    """Steps of each window, in order."""

    def zeros(self, *axes: int) -> np.ndarray:
        return np.zeros((self.queries, *axes))


@dataclass(eq=False)
class InfluenceSums:
    """Grows as steps are added, last step first."""

    shape: SumShape
    norm_at_end_Q: np.ndarray | None = None
    """Norm of the adjoint at the end of training; None for a method that has none."""
    reliable_QDT: np.ndarray = field(init=False)
    unreliable_QD: np.ndarray = field(init=False)
    """Contributions of steps before the horizon; an order of magnitude at best."""
    unit_QDU: np.ndarray = field(init=False)
    window_QDW: np.ndarray = field(init=False)
    """Reliable contributions."""
    steps: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    """Step → what raised and what lowered each query, [Q] each, and the method's numbers."""
    within_Q: np.ndarray = field(init=False)
    """Whether the steps added so far are within the horizon."""
    common_QD: np.ndarray = field(init=False)
    """Contributions of the steps that are within the horizon of all queries."""
    common_from: int | None = None
    """The first of these steps; None: there is none."""

    def __post_init__(self) -> None:
        shape = self.shape
        self.reliable_QDT = shape.zeros(shape.datums, shape.positions)
        self.unreliable_QD = shape.zeros(shape.datums)
        self.unit_QDU = shape.zeros(shape.datums, shape.units)
        self.window_QDW = shape.zeros(shape.datums, len(shape.windows))
        self.within_Q = np.ones(shape.queries, bool)
        self.common_QD = shape.zeros(shape.datums)

    def add(self, found: SweepStep) -> np.ndarray:
        """Add a step and return its reliable influence by slot, [Q, N].

        Steps must come last first, each once.
        """
        if self.norm_at_end_Q is not None:
            growth_Q = found.columns["adjoint_norm"] / np.maximum(self.norm_at_end_Q, 1e-300)
            self.within_Q &= growth_Q <= LIMIT  # False for NaN, of a query that was given up
        if self.within_Q.all():
            self.common_from = found.step
        influence_QN = found.influence_QNT.sum(2)
        scored = found.influence_QNT.shape[2]  # positions at the end of the window that have a loss
        window = next(w for w, steps in enumerate(self.shape.windows) if found.step in steps)
        for slot, datum in enumerate(found.datum_N.tolist()):
            # One datum may fill several slots, so slots are added one at a time.
            own_Q = influence_QN[:, slot]
            self.reliable_QDT[:, datum, -scored:] += self.kept(found.influence_QNT[:, slot])
            self.unreliable_QD[:, datum] += np.where(self.within_Q, 0.0, own_Q)
            self.window_QDW[:, datum, window] += self.kept(own_Q)
            self.unit_QDU[:, datum] += found.unit_QNU[:, slot]
            if self.common_from == found.step:
                self.common_QD[:, datum] += own_Q
        self.steps[found.step] = {
            "raised": np.maximum(influence_QN, 0).sum(1),
            "lowered": np.minimum(influence_QN, 0).sum(1),
            "reliable": self.within_Q.copy(),
            **found.columns,
        }
        return self.kept(influence_QN)

    def kept(self, own_Q: np.ndarray) -> np.ndarray:
        """Return values with the queries along the first axis, 0 where they are unreliable."""
        return np.where(self.within_Q.reshape(-1, *[1] * (own_Q.ndim - 1)), own_Q, 0.0)

    @property
    def total_QD(self) -> np.ndarray:
        """Reliable influence of each datum."""
        return self.reliable_QDT.sum(2)

    def column(self, name: str) -> np.ndarray:
        """Return one number of every step, in the order of training, [S, Q]."""
        return np.stack([self.steps[step][name] for step in sorted(self.steps)])


def windows_of(steps: range, count: int) -> tuple[range, ...]:
    """Split steps into windows of about equal length; fewer if there are not enough steps."""
    count = min(count, len(steps))
    ends = [steps.start + len(steps) * w // count for w in range(count + 1)]
    return tuple(range(*pair) for pair in itertools.pairwise(ends))
