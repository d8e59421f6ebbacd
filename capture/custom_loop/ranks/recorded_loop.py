"""The loop that is recorded, as its ranks train it."""

import logging
from dataclasses import dataclass

from capture.custom_loop.ranks.agreement import Ranks
from capture.custom_loop.ranks.beginning import StepsBefore
from capture.custom_loop.ranks.checkpoints import LoopCheckpoints
from capture.custom_loop.ranks.wrappers import DDP
from capture.errors import RunError

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordedLoop:
    """The ranks that train a model together, its wrapper, and who recorded the run before."""

    ranks: Ranks
    checkpoints: LoopCheckpoints
    wrapper: DDP | None
    """What averages the gradients over ranks; None for a single rank."""
    before: StepsBefore | None
    """How the run's last segment was recorded; None if nothing is recorded yet."""

    def require_no_join(self) -> None:
        """Raise ``RunError`` within ``wrapper.join()``: some ranks take more steps than others."""
        if self.wrapper is not None and self.wrapper._join_config.enable:
            problem = "is in join(), in which some ranks take more steps than others"
            remedy = "Give all ranks equally many batches (drop_last=True); they may differ in size"
            raise RunError("model", problem, remedy)

    def require_same_batch(self, num_datums: int, where: str) -> None:
        """Raise ``RunError`` if a run goes on with other ranks and other batches.

        ``num_datums``: of the first step, over all ranks. Training itself would change. With as
        many ranks as before, a warning is logged: the step may be the last of an epoch.
        """
        size, before = self.ranks.size, self.before
        if before is None or num_datums == max(before.counts):
            return
        problem = (
            f"has {num_datums} datums (ranks: {size}), but the steps before have "
            f"{max(before.counts)} (ranks: {before.num_ranks})"
        )
        if before.num_ranks != size:
            remedy = "Choose batches so that all ranks together have as many datums in a step"
            raise RunError(where, f"{problem}, so that training itself would change", remedy)
        if num_datums not in before.counts and self.ranks.rank == 0:
            LOG.warning(
                "%s: %s. Unless an epoch ends here, training itself changes", where, problem
            )
