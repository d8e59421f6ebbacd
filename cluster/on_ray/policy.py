"""Decisions about work on a cluster, as plain values that need no cluster.

Work is divided into pieces. A piece whose worker was lost is tried again, ``MAX_LOSSES`` times; an
error that the piece itself raises would occur again, and ends the work. Pieces may finish in any
order; their results are delivered in the order of the pieces. No piece starts too far ahead of the
first unfinished one, so that a slow worker neither blocks the others nor lets results pile up.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

MAX_LOSSES = 3
"""How often a piece of work is tried again after the loss of its worker."""


class Decision(Enum):
    RETRY = "retry"
    RAISE = "raise"


def after_failure(losses: int, max_losses: int = MAX_LOSSES, *, lost: bool) -> Decision:
    """Retry a lost piece up to ``max_losses`` times; never one that raised (``lost`` is False).

    ``losses`` includes the present one.
    """
    return Decision.RETRY if lost and losses <= max_losses else Decision.RAISE


def pieces_at_once(cpus: int) -> int:
    """Pieces submitted at a time: for each worker one to work on and one that waits."""
    return 2 * max(1, cpus)


@dataclass
class JoiningNodes:
    """Nodes of a cluster that others may still join: an autoscaler's machines, a slow start."""

    patience_seconds: float
    """How long to wait for another node since the last one joined."""
    started: float
    """When waiting began, in seconds."""
    most: int = 0
    """Most nodes seen."""
    last: float = -math.inf
    """When the last one joined."""

    def seconds_left(self, num_nodes: int, now: float) -> float:
        """How long to wait from now on, given how many nodes there are; not positive: give up."""
        if num_nodes > self.most:
            self.most, self.last = num_nodes, now
        return max(self.started, self.last) + self.patience_seconds - now


TASKS_PER_CPU, MAX_TASKS = 8, 4096


def max_tasks(cpus: int) -> int:
    """Largest number of tasks that one job is split into.

    There are enough for cores that finish early to find more work. There are no more, because each
    task costs the driver up to 10 ms and 24 kB, and results that another task merges go through the
    object store.
    """
    return min(MAX_TASKS, TASKS_PER_CPU * max(1, cpus))


def block_size(num_pieces: int, most: int) -> int:
    """The smallest power of two such that blocks of this size are at most ``most``."""
    return 1 << math.ceil(math.log2(max(1, num_pieces / most)))


@dataclass
class PieceQueue:
    """State of the pieces 0 … ``num_pieces`` - 1: waiting, running, finished, delivered."""

    num_pieces: int
    lead: int
    """A piece starts only if it is less than this far ahead of the first undelivered one."""
    max_losses: int = MAX_LOSSES
    num_delivered: int = 0
    """Results of the pieces before this one are delivered."""
    next_new: int = 0
    """First piece that was never started."""
    retries: list[int] = field(default_factory=list)
    """Lost pieces that wait for another attempt, a heap."""
    finished: set[int] = field(default_factory=set)
    """Finished pieces that wait for an earlier one."""
    losses: dict[int, int] = field(default_factory=dict)
    """Piece → how often its worker was lost."""

    def take(self) -> int | None:
        """The next piece to start, lost ones first; None if none can start now."""
        if self.retries:
            return heapq.heappop(self.retries)
        if self.next_new >= min(self.num_pieces, self.num_delivered + self.lead):
            return None
        self.next_new += 1
        return self.next_new - 1

    def done(self, piece: int) -> Iterator[int]:
        """Mark a piece as finished; yields, in order, the pieces whose results can be delivered."""
        self.finished.add(piece)
        while self.num_delivered in self.finished:
            self.finished.remove(self.num_delivered)
            self.num_delivered += 1
            yield self.num_delivered - 1

    def failed(self, piece: int, *, lost: bool) -> Decision:
        """Decide about a failed piece; ``take`` returns one that is tried again."""
        self.losses[piece] = self.losses.get(piece, 0) + lost
        decision = after_failure(self.losses[piece], self.max_losses, lost=lost)
        if decision is Decision.RETRY:
            heapq.heappush(self.retries, piece)
        return decision
