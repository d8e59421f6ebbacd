"""Retry a request after a failure that may pass: a bounded number of times, with growing waits.

Only this module retries. The libraries below it make one attempt, so ``num_retries`` counts
every retry that was made. Why this is not ``tenacity``: see docs/concepts/design-choices.md.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

LONGEST_WAIT_SECONDS = 20.0
UNANSWERED_RETRIES = 3
"""Retry limit for a store that has never answered: its address is probably wrong."""

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class TransientError(Exception):
    """A failure that may pass. ``Retrier`` handles it; it never leaves ``capture.store``."""

    def __init__(self, problem: str, answered: bool) -> None:
        super().__init__(problem, answered)
        self.problem = problem
        self.answered = answered
        """True if the store reported the failure, False if the connection failed."""


def wait_seconds(failures: int, first_seconds: float, draw: float) -> float:
    """Wait after the n-th failure (n ≥ 1): doubling, bounded, and shortened by up to a half.

    ``draw`` in [0, 1) is the random part, so that clients that failed together retry apart.
    """
    # 2.0 ** 30 is far above the bound for any sane first wait, and cannot overflow.
    longest = min(first_seconds * 2.0 ** min(failures - 1, 30), LONGEST_WAIT_SECONDS)
    return longest * (1 - draw / 2)


class Retrier:
    """Runs requests to one store until they succeed or the retries are used up; counts retries.

    Threads share it. ``sleep`` and ``draw`` are arguments so that tests need neither time nor luck.
    """

    def __init__(
        self,
        retries: int,
        first_wait_seconds: float,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.retries = retries
        self.first_wait_seconds = first_wait_seconds
        self.sleep = sleep
        self.draw = draw
        self.answered = False
        self.num_retries = 0
        self.lock = threading.Lock()

    def __call__(self, action: Callable[[], Result]) -> Result:
        """Return the action's result.

        Raises the last ``TransientError`` when no retries are left; any other error at once.
        """
        failures = 0
        while True:
            try:
                result = action()
            except TransientError as error:
                self.answered |= error.answered
                failures += 1
                # The limit is read here, not before: this very failure may be the first answer.
                if failures > self.max_retries():
                    raise
                self.wait(failures, error)
            else:
                self.answered = True
                return result

    def max_retries(self) -> int:
        return self.retries if self.answered else min(self.retries, UNANSWERED_RETRIES)

    def wait(self, failures: int, error: TransientError) -> None:
        seconds = wait_seconds(failures, self.first_wait_seconds, self.draw())
        self.count()
        log.debug("retry %d in %.2f s: %s", failures, seconds, error.problem)
        self.sleep(seconds)

    def count(self) -> None:
        with self.lock:
            self.num_retries += 1
