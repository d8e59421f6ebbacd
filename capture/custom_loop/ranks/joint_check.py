"""Check the split of a model that calls need all ranks for, at the same steps on all of them."""

from collections.abc import Sequence

from capture.custom_loop.checks.split_guard import SplitGuard
from capture.custom_loop.passes.forward_passes import ForwardPass
from capture.custom_loop.ranks.agreement import Ranks
from capture.custom_loop.ranks.loop_state import PlainState
from capture.custom_loop.step_inputs import StepPosition


def check_together(
    guard: SplitGuard,
    state: PlainState,
    ranks: Ranks,
    passes: Sequence[ForwardPass],
    position: StepPosition,
) -> None:
    """Check a step if it is due on any rank; all ranks must call this.

    Raises ``SplitError`` if a datum's gradient is not its own on this rank, and ``RunError`` if it
    is not on another.
    """
    due = ranks.agree(position.where, {"due": guard.is_due(passes)})
    if any(own["due"] for own in due):
        with state.put_together():
            ranks.attempt(lambda: guard.check(passes, position.step))
        ranks.agree(position.where)
    else:
        guard.check(passes, position.step)
