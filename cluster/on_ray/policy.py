"""What a cluster does next: decisions as plain values, made without a cluster.

Work goes out in pieces. A piece whose worker was lost goes out again, some times; what a piece
itself raises would come again, and ends the work. Pieces may finish in any order; their results are
handed on in the order of the pieces, and no piece goes out that is too far ahead of the first one
missing: one slow worker then holds up neither the others' work nor heaps up what they made.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

MAX_LOSSES = 3
"""How often a piece of work goes out again after the loss of its worker."""


class Decision(Enum):
    RETRY = "retry"
    RAISE = "raise"


def after_failure(losses: int, max_losses: int = MAX_LOSSES, *, lost: bool) -> Decision:
    """``lost``: the worker is gone; else the piece itself raised. ``losses`` counts this one."""
    return Decision.RETRY if lost and losses <= max_losses else Decision.RAISE


def pieces_at_once(cpus: int) -> int:
    """Pieces given to a cluster at a time: one each worker has, one that it finds next."""
    return 2 * max(1, cpus)


TASKS_PER_CPU = 8
MANY_TASKS = 4096


def most_tasks(cpus: int) -> int:
    """Tasks that one job is dealt into.

    Enough that cores which are done early find more to do. No more: each takes the driver up to
    10 ms and 24 kB, and results that are merged by another task go through the object store.
    """
    return min(MANY_TASKS, TASKS_PER_CPU * max(1, cpus))


def block_size(num_pieces: int, most: int) -> int:
    """The least power of two that makes at most so many blocks of them."""
    return 1 << math.ceil(math.log2(max(1, num_pieces / most)))


@dataclass
class Board:
    """Which pieces (0 … ``num_pieces`` - 1) are to do, under way, and made but not handed on."""

    num_pieces: int
    lead: int
    """No piece goes out that is so many or more ahead of the first one not handed on."""
    max_losses: int = MAX_LOSSES
    handed_on: int = 0
    """The first so many pieces are."""
    fresh: int = 0
    """Pieces from here on were never given out."""
    again: list[int] = field(default_factory=list)
    """Lost ones, a heap."""
    made: set[int] = field(default_factory=set)
    losses: dict[int, int] = field(default_factory=dict)

    def take(self) -> int | None:
        """The piece to give out now, the earliest first; None if there is none for now."""
        if self.again:
            return heapq.heappop(self.again)
        if self.fresh >= min(self.num_pieces, self.handed_on + self.lead):
            return None
        self.fresh += 1
        return self.fresh - 1

    def done(self, piece: int) -> Iterator[int]:
        """Pieces whose results can be handed on, in order, now that this one is made."""
        self.made.add(piece)
        while self.handed_on in self.made:
            self.made.remove(self.handed_on)
            self.handed_on += 1
            yield self.handed_on - 1

    def failed(self, piece: int, *, lost: bool) -> Decision:
        """What becomes of a piece that failed; if it is tried again, ``take`` will name it."""
        self.losses[piece] = self.losses.get(piece, 0) + lost
        decision = after_failure(self.losses[piece], self.max_losses, lost=lost)
        if decision is Decision.RETRY:
            heapq.heappush(self.again, piece)
        return decision
