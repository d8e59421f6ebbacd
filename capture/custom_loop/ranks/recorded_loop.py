"""The loop that is recorded, as its ranks train it."""

from dataclasses import dataclass

from capture.custom_loop.ranks.agreement import Ranks
from capture.custom_loop.ranks.checkpoints import LoopCheckpoints
from capture.custom_loop.ranks.same_batches import SameBatches
from capture.custom_loop.ranks.wrappers import DDP
from capture.errors import RunError


@dataclass(frozen=True)
class RecordedLoop:
    """The ranks that train a model together, its wrapper, and who recorded the run before."""

    ranks: Ranks
    checkpoints: LoopCheckpoints
    wrapper: DDP | None
    """What averages the gradients over ranks; None for a single rank."""
    batches: SameBatches
    """Compares the first steps with those before, if a run is resumed."""

    def require_no_join(self) -> None:
        """Raise ``RunError`` within ``wrapper.join()``: some ranks take more steps than others."""
        if self.wrapper is not None and self.wrapper._join_config.enable:
            problem = "is in join(), in which some ranks take more steps than others"
            remedy = "Give all ranks equally many batches (drop_last=True); they may differ in size"
            raise RunError("model", problem, remedy)
