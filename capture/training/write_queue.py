"""Closed segments on their way to the store: written in order, bounded in memory, with patience.

The training thread adds what is closed and goes on; a thread beside it writes, one segment after
the other. While the store does not serve (``StoreAwayError``) the write is made again, for up to
``store.patience_seconds``. Any other error ends the backlog at once, and nothing that was added
later is written, so no gap between segments can arise.
"""

import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from capture.errors import StoreAwayError, StoreError
from capture.store.config import StoreConfig

AGAIN_SECONDS = 2.0
"""Between two tries to write a segment; each try is itself made of several requests."""
LOOK_SECONDS = 1.0
"""How often a waiting training thread tells that it waits."""
GO_ON = "go on with --resume; what was committed is safe"
FULL = {errno.ENOSPC, errno.EDQUOT}

Write = Callable[[], int]
"""Stores a segment and returns its bytes; can be called again when it has failed."""


@dataclass(frozen=True)
class Waiting:
    """The store does not take what is closed: it does not serve, or training is faster."""

    problem: str
    seconds: float
    patience_seconds: float | None
    """After so long without the store training stops; None: the store is merely slow."""


class Backlog:
    """What is closed and not yet stored."""

    def __init__(self, config: StoreConfig, report: Callable[[Waiting], None]) -> None:
        """``report`` is called on the thread that adds and settles."""
        self.config = config
        self.report = report
        self.changed = threading.Condition()
        self.queue: deque[tuple[int, Write]] = deque()
        self.pending_bytes = 0
        """In memory, of segments that are not stored yet."""
        self.stored_bytes = 0
        self.waited_seconds = 0.0
        """How long training has stood still for the store, since this was last taken."""
        self.failure: Exception | None = None
        self.away: tuple[float, str] | None = None
        """Since when the store has not served, and what it said."""
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.work, name="recorder", daemon=True)
        self.thread.start()

    # --- the training thread ----------------------------------------------------------------------

    def make_room(self, num_bytes: int) -> None:
        """Wait until so much more fits; raises what the writing thread has met.

        What is larger than the bound by itself fits when nothing else is pending.
        """
        limit = self.config.max_pending_bytes
        began = time.monotonic()
        self.wait_until(lambda: not self.queue or self.pending_bytes + num_bytes <= limit)
        self.waited_seconds += time.monotonic() - began

    def add(self, num_bytes: int, write: Write) -> None:
        with self.changed:
            self.queue.append((num_bytes, write))
            self.pending_bytes += num_bytes
            self.changed.notify_all()

    def take_waited_seconds(self) -> float:
        taken, self.waited_seconds = self.waited_seconds, 0.0
        return taken

    def settle(self) -> None:
        """Wait until all is stored; raises what the writing thread has met."""
        self.wait_until(lambda: not self.queue)

    def look(self) -> None:
        """Raise what the writing thread has met; report if the store does not serve."""
        failure, away = self.failure, self.away
        if failure is not None:
            raise failure
        if away is not None:
            since, problem = away
            seconds = time.monotonic() - since
            self.report(Waiting(problem, seconds, self.config.patience_seconds))

    def wait_until(self, ready: Callable[[], bool]) -> None:
        began = time.monotonic()
        while True:
            with self.changed:
                if self.failure is None and not ready():
                    self.changed.wait(LOOK_SECONDS)
                if self.failure is None and ready():
                    return
            self.look()
            seconds = time.monotonic() - began
            if self.away is None and seconds > LOOK_SECONDS:
                problem = f"{self.pending_bytes / 1e6:,.0f} MB wait to be written"
                self.report(Waiting(problem, seconds, None))

    def close(self, seconds: float | None = None) -> None:
        """End the writing thread: when all is stored or has failed, or after so many seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self.changed:
            while self.queue and self.failure is None and (deadline is None or not past(deadline)):
                self.changed.wait(LOOK_SECONDS if deadline is None else deadline - time.monotonic())
            self.ending.set()
            self.changed.notify_all()
        if not self.queue or self.failure:
            self.thread.join()

    # --- the writing thread -----------------------------------------------------------------------

    def work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.queue or self.ending.is_set())
                if self.ending.is_set():
                    return
                num_bytes, write = self.queue[0]
            try:
                stored_bytes = self.patiently(write)
            except Exception as error:  # raised anew by the training thread
                self.fail(explained(error))
                return
            with self.changed:
                self.queue.popleft()
                self.pending_bytes -= num_bytes
                self.stored_bytes += stored_bytes
                self.changed.notify_all()

    def patiently(self, write: Write) -> int:
        began = time.monotonic()
        while True:
            try:
                stored_bytes = write()
            except StoreAwayError as error:
                seconds = time.monotonic() - began
                if seconds >= self.config.patience_seconds or self.ending.is_set():
                    raise gave_up(error, seconds) from error
                self.away = (began, f"{error.where}: {error.problem}")
                self.ending.wait(min(AGAIN_SECONDS, self.config.patience_seconds - seconds))
            else:
                self.away = None
                return stored_bytes

    def fail(self, error: Exception) -> None:
        with self.changed:
            self.failure = error
            self.queue.clear()
            self.pending_bytes = 0
            self.changed.notify_all()


def past(deadline: float) -> bool:
    return time.monotonic() >= deadline


def gave_up(error: StoreAwayError, seconds: float) -> StoreAwayError:
    problem = f"{error.problem}; waited {seconds:.0f} s (store.patience_seconds)"
    return StoreAwayError(error.where, problem, "Wait until the store is back")


def explained(error: Exception) -> Exception:
    """The same error, with the way on for what a user can put right."""
    if not isinstance(error, StoreError):
        return error
    full = getattr(error.__cause__, "errno", None) in FULL
    remedy = "Make room" if full else error.remedy or "Put that right"
    made = type(error)(error.where, error.problem, f"{remedy}, then {GO_ON}")
    made.__cause__ = error
    return made
