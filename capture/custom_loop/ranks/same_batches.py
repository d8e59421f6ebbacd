"""A resumed run goes on with batches of as many datums as before, or it is refused.

With other batches the training itself would change, and a trainer would skip other data than the
run has seen. An epoch may end with one smaller batch, so a single one is let through. Loops whose
batches vary anyway (three sizes or more in a segment) are not compared.
"""

from dataclasses import dataclass

from capture.custom_loop.ranks.beginning import StepsBefore
from capture.errors import RunError

VARYING = 3
"""Sizes of batches from which on a loop counts as one whose batches vary."""
REMEDY = "Resume with batches as before, or record another run that starts from its checkpoint"
RANKS_REMEDY = "Choose batches so that all ranks together have as many datums in a step"


@dataclass
class SameBatches:
    """Compares the first steps of a resumed run with those before."""

    before: StepsBefore | None
    """How the run was recorded; None if nothing is recorded yet, or no comparison is left."""
    num_ranks: int
    is_last_of_epoch: bool = False
    """Whether the step before was smaller, as an epoch's last may be."""

    def require(self, num_datums: int, where: str) -> None:
        """Take the number of datums of the next step, over all ranks.

        Raises ``RunError`` if it is not that of the steps before.
        """
        before = self.before
        if before is None or num_datums == max(before.counts):
            self.before = None
            return
        problem = (
            f"has {num_datums} datums (ranks: {self.num_ranks}), but the steps before have "
            f"{max(before.counts)} (ranks: {before.num_ranks}); training itself would change"
        )
        if before.num_ranks != self.num_ranks:
            raise RunError(where, problem, RANKS_REMEDY)
        if len(before.counts) >= VARYING:
            self.before = None
            return
        if num_datums > max(before.counts) or self.is_last_of_epoch:
            raise RunError(where, problem, REMEDY)
        self.is_last_of_epoch = True
