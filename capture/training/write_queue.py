"""Write closed segments to the store on a second thread, in order and within a memory bound.

The training thread adds writes and continues. The writing thread carries them out one after the
other. While the store does not answer (``StoreAwayError``), the write is tried again for up to
``store.patience_seconds``. Any other error stops the queue at once. Nothing that was added later is
written then, so that a run never has a gap between its segments.
"""

import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from capture.errors import StoreAwayError, StoreError
from capture.store.config import StoreConfig

RETRY_SECONDS = 2.0
"""Time between two tries to write a segment. Each try makes several requests itself."""
REPORT_SECONDS = 1.0
"""How often a waiting training thread reports that it waits."""
RESUME_ADVICE = "go on with --resume; what was committed is safe"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

Write = Callable[[], int]
"""Stores something and returns its size in bytes; may be called again after a failure."""


@dataclass(frozen=True)
class QueuedWrite:
    """A write that is not done yet."""

    num_bytes: int
    """Memory that it holds."""
    write: Write


@dataclass(frozen=True)
class WriteDelay:
    """Reported while writing is delayed: the store does not answer, or training is faster."""

    problem: str
    seconds: float
    """How long the delay has lasted."""
    patience_seconds: float | None
    """Training stops when the store has been away for so long; None: the store is only slow."""


class WriteQueue:
    """Closed segments that are not stored yet, and the thread that stores them."""

    def __init__(self, config: StoreConfig, report: Callable[[WriteDelay], None]) -> None:
        """Start the writing thread; ``report`` is called on the training thread."""
        self.config = config
        self.report = report
        self.changed = threading.Condition()
        self.queue: deque[QueuedWrite] = deque()
        self.pending_bytes = 0
        """Memory held by writes that are not done yet."""
        self.stored_bytes = 0
        self.waited_seconds = 0.0
        """How long training has waited for the store since ``take_waited_seconds``."""
        self.failure: Exception | None = None
        self.away: tuple[float, str] | None = None
        """When the store stopped answering (monotonic seconds), and its last error."""
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.work, name="recorder", daemon=True)
        self.thread.start()

    # --- the training thread ----------------------------------------------------------------------

    def wait_for_room(self, num_bytes: int) -> None:
        """Wait until so many more bytes fit; raises the error of the writing thread.

        A write that is larger than the bound fits when nothing else is pending.
        """
        limit = self.config.max_pending_bytes
        began = time.monotonic()
        self.wait_until(lambda: not self.queue or self.pending_bytes + num_bytes <= limit)
        self.waited_seconds += time.monotonic() - began

    def add(self, num_bytes: int, write: Write) -> None:
        """Append a write that holds so many bytes of memory; does not wait."""
        with self.changed:
            self.queue.append(QueuedWrite(num_bytes, write))
            self.pending_bytes += num_bytes
            self.changed.notify_all()

    def take_waited_seconds(self) -> float:
        """Return the time waited for the store, and start to count again from 0."""
        taken, self.waited_seconds = self.waited_seconds, 0.0
        return taken

    def flush(self) -> None:
        """Wait until all writes are done; raises the error of the writing thread."""
        self.wait_until(lambda: not self.queue)

    def check(self) -> None:
        """Raise the error of the writing thread; report if the store does not answer."""
        failure, away = self.failure, self.away
        if failure is not None:
            raise failure
        if away is not None:
            since, problem = away
            seconds = time.monotonic() - since
            self.report(WriteDelay(problem, seconds, self.config.patience_seconds))

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait for a condition, and report the delay while it lasts."""
        began = time.monotonic()
        while True:
            with self.changed:
                if self.failure is None and not ready():
                    self.changed.wait(REPORT_SECONDS)
                if self.failure is None and ready():
                    return
            self.check()
            seconds = time.monotonic() - began
            if self.away is None and seconds > REPORT_SECONDS:
                problem = f"{self.pending_bytes / 1e6:,.0f} MB wait to be written"
                self.report(WriteDelay(problem, seconds, None))

    def close(self, seconds: float | None = None) -> None:
        """Stop the writing thread when all is stored or has failed, or after so many seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self.changed:
            while self.queue and self.failure is None and not has_passed(deadline):
                left = REPORT_SECONDS if deadline is None else deadline - time.monotonic()
                self.changed.wait(left)
            self.ending.set()
            self.changed.notify_all()
        # After the deadline a write may hang in the network; the thread is a daemon, so leave it.
        if not self.queue or self.failure:
            self.thread.join()

    # --- the writing thread -----------------------------------------------------------------------

    def work(self) -> None:
        """Carry out writes until the queue is closed or one of them fails."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.queue or self.ending.is_set())
                if self.ending.is_set():
                    return
                # It stays in the queue until it is done, so that an empty queue means "all stored".
                first = self.queue[0]
            try:
                stored_bytes = self.write_with_retries(first.write)
            except Exception as error:  # raised again by the training thread
                self.fail(with_resume_advice(error))
                return
            with self.changed:
                self.queue.popleft()
                self.pending_bytes -= first.num_bytes
                self.stored_bytes += stored_bytes
                self.changed.notify_all()

    def write_with_retries(self, write: Write) -> int:
        """Call ``write`` until the store answers; raises ``StoreAwayError`` after the patience."""
        began = time.monotonic()
        while True:
            try:
                stored_bytes = write()
            except StoreAwayError as error:
                seconds = time.monotonic() - began
                if seconds >= self.config.patience_seconds or self.ending.is_set():
                    raise patience_error(error, seconds) from error
                self.away = (began, f"{error.where}: {error.problem}")
                self.ending.wait(min(RETRY_SECONDS, self.config.patience_seconds - seconds))
            else:
                self.away = None
                return stored_bytes

    def fail(self, error: Exception) -> None:
        """Keep the error for the training thread and drop all pending writes."""
        with self.changed:
            self.failure = error
            self.queue.clear()
            self.pending_bytes = 0
            self.changed.notify_all()


def has_passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def patience_error(error: StoreAwayError, seconds: float) -> StoreAwayError:
    problem = f"{error.problem}; waited {seconds:.0f} s (store.patience_seconds)"
    return StoreAwayError(error.where, problem, "Wait until the store is back")


def with_resume_advice(error: Exception) -> Exception:
    """Return the error with advice on how to resume, if it is one that a user can repair."""
    if not isinstance(error, StoreError):
        return error
    full = getattr(error.__cause__, "errno", None) in DISK_FULL
    remedy = "Make room" if full else error.remedy or "Put that right"
    advised = type(error)(error.where, error.problem, f"{remedy}, then {RESUME_ADVICE}")
    advised.__cause__ = error
    return advised
