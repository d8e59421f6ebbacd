"""Rules that are linear entry by entry, which gives lifetime shifts too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from capture.optim.lifetime import AppliedUpdate
from capture.optim.rules.unit_update import UnitParts, UnitUpdate, parts_of

Coefficients = Callable[[UnitUpdate], AppliedUpdate]
"""Takes an update of a parameter, returns its coefficients for a loop that has not clipped."""


@dataclass(frozen=True)
class LinearRule:
    """A rule with coefficients (``capture.optim.lifetime``)."""

    name: str
    coefficients: Coefficients
    moment: str = ""
    """The state that is linear in the gradients, m; empty if there is none."""
    also_reads: tuple[str, ...] = ()
    """Other states that the coefficients read as they were before the update."""
    multiplies: bool = False
    """Whether weight decay multiplies the weights, without a setting that says so."""
    problem = ""

    @property
    def reads(self) -> tuple[str, ...]:
        return (*filter(None, [self.moment]), *self.also_reads)

    def decays(self, group: Mapping[str, Any]) -> bool:
        decoupled = self.multiplies or bool(group.get("decoupled_weight_decay"))
        return decoupled and bool(group.get("weight_decay", 0) or group.get("lambd", 0))

    def parts(self, update: UnitUpdate) -> UnitParts:
        return parts_of(self.coefficients(update), update, self.moment_before(update))

    def moment_before(self, update: UnitUpdate) -> Tensor | None:
        return update.before.get(self.moment)


def with_decay(
    applied: AppliedUpdate, update: UnitUpdate, *, decoupled: bool | None = None
) -> AppliedUpdate:
    """Return coefficients with a group's weight decay, and its sign if it maximizes.

    ``decoupled``: whether decay multiplies the weights; None: as the group says, by default not.
    """
    group, decay = update.group, float(update.group.get("weight_decay", 0.0))
    if group.get("maximize"):
        applied = replace(applied, clip=-applied.clip)
    if decoupled is None:
        decoupled = bool(group.get("decoupled_weight_decay"))
    if decoupled:
        return replace(applied, kept=1 - update.learning_rate * decay)
    return replace(applied, l2=decay)
