"""How much each training datum counts: the factor on its loss.

Shapes: D training datum, N slot of a batch.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from capture.engine.step_plan import StepPlan
from capture.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Weighting:
    """A factor on the loss of each training datum, in all steps or in some.

    1 is as trained, 0 masks the datum, 2 counts it twice. The order of the datums, the divisor of
    the mean loss, dropout masks and seeds stay as they are.
    """

    weight_D: np.ndarray
    """float64, by datum id."""
    steps: Collection[int] | None = None
    """The steps in which the factors apply; None: all."""

    def __post_init__(self) -> None:
        if not np.isfinite(self.weight_D).all():
            datum = int(np.flatnonzero(~np.isfinite(self.weight_D))[0])
            problem = f"datum {datum} has weight {self.weight_D[datum]}, must be a finite number"
            raise ConfigError("weights", problem)

    @classmethod
    def of(cls, num_datums: int, changed: dict[int, float]) -> "Weighting":
        """Return a weighting of the datums that ``changed`` names; all others have weight 1.

        Raises ``ConfigError`` for a datum that does not exist.
        """
        weight_D = np.ones(num_datums)
        for datum, weight in changed.items():
            if not 0 <= datum < num_datums:
                problem = f"there is no training datum {datum}; there are {num_datums:,}"
                raise ConfigError("datums", problem, f"Choose from 0 to {num_datums - 1}")
            weight_D[datum] = weight
        return cls(weight_D)

    def of_batch(self, step: int, datum_N: np.ndarray) -> np.ndarray:
        """Return the weights of a batch's datums at a step, [N]."""
        if self.steps is not None and step not in self.steps:
            return np.ones(len(datum_N))
        return self.weight_D[datum_N]

    def first_change(self, plan: StepPlan, end_step: int) -> int:
        """Return the first step with a weight other than 1; ``end_step`` if there is none before
        it."""
        for planned in plan.planned_steps(0):
            if planned.step >= end_step:
                break
            if (self.of_batch(planned.step, planned.datum_N) != 1).any():
                return planned.step
        return end_step
