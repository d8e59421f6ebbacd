"""Ask again when a failure may pass: a bounded number of times, waiting longer each time.

Only this code retries: the libraries below it are told to try once, so that what is counted here is
what happened.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

LONGEST_WAIT_SECONDS = 20.0
UNANSWERED_RETRIES = 3
"""For a store that has never answered: its address is more likely wrong than its service down."""

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class TemporaryFault(Exception):
    """A failure that may pass; never leaves ``capture``."""

    def __init__(self, problem: str, answered: bool) -> None:
        super().__init__(problem, answered)
        self.problem = problem
        self.answered = answered
        """Whether the store said so itself (else: the way to it failed)."""


def wait_seconds(failures: int, first_seconds: float, draw: float) -> float:
    """The wait after the n-th failure (from 1): doubling, bounded, shortened by up to a half.

    ``draw`` in [0, 1) spreads out clients that failed together.
    """
    longest = min(first_seconds * 2.0 ** min(failures - 1, 30), LONGEST_WAIT_SECONDS)
    return longest * (1 - draw / 2)


class Retrier:
    """Carries out requests to one store, each until it succeeds or patience ends; counts."""

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
        """What the action returns; raises the last ``TemporaryFault``, and at once all else."""
        failures = 0
        while True:
            try:
                result = action()
            except TemporaryFault as fault:
                self.answered |= fault.answered
                failures += 1
                if failures > self.patience():
                    raise
                self.wait(failures, fault)
            else:
                self.answered = True
                return result

    def patience(self) -> int:
        return self.retries if self.answered else min(self.retries, UNANSWERED_RETRIES)

    def wait(self, failures: int, fault: TemporaryFault) -> None:
        seconds = wait_seconds(failures, self.first_wait_seconds, self.draw())
        self.count()
        log.debug("retry %d in %.2f s: %s", failures, seconds, fault.problem)
        self.sleep(seconds)

    def count(self) -> None:
        with self.lock:
            self.num_retries += 1
