"""The loop that is recorded, as its ranks train it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from capture.custom_loop.ranks.agreement import Ranks
from capture.custom_loop.ranks.checkpoints import LoopCheckpoints
from capture.custom_loop.ranks.wrappers import DDP
from capture.errors import RunError


@dataclass(frozen=True)
class RecordedLoop:
    """The ranks that train a model together, its wrapper, and who recorded the run before."""

    ranks: Ranks
    checkpoints: LoopCheckpoints
    wrapper: DDP | None
    """What averages the gradients over ranks; None for a single rank."""
    recorded: Mapping[int, int] = field(default_factory=dict)
    """Number of ranks of the last segment → its largest number of datums in a step; empty if
    nothing is recorded yet."""

    def require_no_join(self) -> None:
        """Raise ``RunError`` within ``wrapper.join()``: some ranks take more steps than others."""
        if self.wrapper is not None and self.wrapper._join_config.enable:
            problem = "is in join(), in which some ranks take more steps than others"
            remedy = "Give all ranks equally many batches (drop_last=True); they may differ in size"
            raise RunError("model", problem, remedy)

    def require_same_batch(self, num_datums: int, where: str) -> None:
        """Raise ``RunError`` if a run goes on with other ranks and other batches.

        ``num_datums``: of the first step. Training itself would change.
        """
        size = self.ranks.size
        for before, datums in self.recorded.items():
            if before != size and num_datums != datums:
                problem = (
                    f"has {num_datums} datums (ranks: {size}), but the steps before have {datums} "
                    f"(ranks: {before}), so that training itself would change"
                )
                remedy = "Choose batches so that all ranks together have as many datums in a step"
                raise RunError(where, problem, remedy)
