"""Ctrl-C and SIGTERM: the first signal stops the work in order, the second kills the process."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Have the first signal raise ``Stopped`` in the main thread, and the second one kill."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for one in STOPPING:
            signal.signal(one, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    except KeyboardInterrupt as error:
        if received and not isinstance(error, Stopped):  # while Ray waits it raises its own
            raise Stopped(received[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code as shells have it: 128 + the signal's number."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
