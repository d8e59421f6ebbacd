"""Ctrl-C and SIGTERM: the first one ends the work in order, the second one ends the process."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, the first signal raises ``Stopped`` in the main thread; a second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    taken: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        taken.append(number)
        for one in STOPPING:
            signal.signal(one, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    except KeyboardInterrupt as error:
        if taken and not isinstance(error, Stopped):  # Ray, waiting, puts its own in its place
            raise Stopped(taken[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(stop: KeyboardInterrupt) -> int:
    """As a shell tells it: 128 and the signal's number."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
