"""Standard streams that are closed, full, or cannot show every character. Imports no rich."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from capture.errors import CaptureError

READER_GONE = 141
"""Exit code when the reader of the output has gone, as shells show it: 128 + SIGPIPE."""


class OutputError(CaptureError):
    """Standard output cannot be written."""


class CheckedOutput:
    """A stream whose failed writes raise ``OutputError``, or ``BrokenPipeError`` as it is."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: Exception | None = None
        """The first failure, which each later flush raises again: argparse ignores it."""

    def write(self, text: str) -> int:
        with self.failures_kept():
            return self.stream.write(text)

    def flush(self) -> None:
        if self.failure is not None:
            raise self.failure
        with self.failures_kept():
            self.stream.flush()

    @contextlib.contextmanager
    def failures_kept(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            self.failure = error
            raise
        except OSError as error:
            problem = f"cannot be written: {error.strerror or error}"
            remedy = "Free space where it goes, or send it elsewhere"
            self.failure = OutputError("standard output", problem, remedy)
            raise self.failure from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Have prints to standard output raise ``OutputError`` or ``BrokenPipeError`` within.

    Everything is written when the block ends. Characters that the stream's encoding lacks are
    replaced. After a failure the rest of the output is discarded.
    """
    open_missing()
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    checked = CheckedOutput(stream)
    try:
        with contextlib.redirect_stdout(cast(TextIO, checked)):
            try:
                yield
            finally:
                checked.flush()
    except (OutputError, BrokenPipeError):
        discard(stream)
        raise


def open_missing() -> None:
    """Open the null device in place of closed standard streams.

    A file that is opened later would otherwise get the number of a standard stream, and whatever a
    library prints would end up in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def discard(stream: TextIO) -> None:
    """Send a stream's waiting text to the null device: the interpreter flushes it when it ends."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test has no number
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
