"""Output that must not wait for a terminal library: error lines, and how this program is called."""

import os
import shutil
import sys
from os.path import relpath
from pathlib import Path

from capture.redaction import redact

RED, RESET = "\x1b[31m", "\x1b[0m"
CONTROL = dict.fromkeys((*range(9), *range(11, 32), 127))
"""Control characters but for tab and newline. An error can quote a file name or a message of a
store; these must not move the cursor."""


def print_error(text: str) -> None:
    """Print to standard error, in red where that is a terminal (and NO_COLOR is not set)."""
    text = redact(text).translate(CONTROL)
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    print(f"{RED}{text}{RESET}" if coloured else text, file=sys.stderr)


def program() -> str:
    """``ontogeny``, or its relative path where it is not on the PATH."""
    name = "ontogeny"
    return name if shutil.which(name) or Path(sys.argv[0]).name != name else relpath(sys.argv[0])
