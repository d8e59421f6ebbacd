"""A resumed run with batches of another size is refused, but for the last batch of an epoch."""

import pytest

from capture.custom_loop.ranks.beginning import StepsBefore
from capture.custom_loop.ranks.same_batches import SameBatches
from capture.errors import RunError

LET_THROUGH = {
    "as before": ({8}, [8, 5, 5]),
    "the last of an epoch, as before": ({8, 5}, [5, 8, 8]),
    "the last of an epoch, first seen here": ({8}, [5, 8, 8]),
    "batches that vary": ({8, 5, 7}, [9, 3, 3]),
    "an epoch of one batch": ({5}, [5, 5]),
}


@pytest.mark.parametrize("kind", LET_THROUGH)
def test_batches_as_before_are_let_through(kind: str) -> None:
    counts, steps = LET_THROUGH[kind]
    batches = SameBatches(StepsBefore(1, frozenset(counts)), 1)
    for step, num_datums in enumerate(steps):
        batches.require(num_datums, f"step {step}")


REFUSED = {
    "larger": ({8}, [16], 1),
    "smaller, twice": ({8}, [4, 4], 1),
    "smaller as an epoch's last, twice": ({8, 5}, [5, 5], 1),
    "other ranks": ({8}, [4], 2),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_batches_are_refused(kind: str) -> None:
    counts, steps, num_ranks = REFUSED[kind]
    batches = SameBatches(StepsBefore(1, frozenset(counts)), num_ranks)
    for num_datums in steps[:-1]:
        batches.require(num_datums, "step 6")
    text = f"^step 7: has {steps[-1]} datums .*but the steps before have 8.*training itself would"
    with pytest.raises(RunError, match=text):
        batches.require(steps[-1], "step 7")
