"""Output that must not wait for a terminal library: error lines, and how this program is called."""

import os
import shutil
import sys
from contextlib import suppress
from os.path import relpath
from pathlib import Path

from capture.redaction import redact

RED, RESET = "\x1b[31m", "\x1b[0m"
KEPT = "\t\n"
HIDDEN_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
"""Characters that make a terminal show text in another order."""
LINE_BREAKS = (0x2028, 0x2029)
SURROGATES = range(0xD800, 0xE000)
"""What Python makes of bytes of a file name that are not UTF-8."""
CONTROL = (*range(32), *range(0x7F, 0xA0), *LINE_BREAKS, *HIDDEN_DIRECTIONS, *SURROGATES)
ESCAPES = {
    code: chr(code).encode("unicode_escape", "surrogatepass").decode()
    for code in CONTROL
    if chr(code) not in KEPT
}


def printable(text: str) -> str:
    """Replace control characters by escapes such as ``\\x1b``; tab and newline stay.

    All output of the command line passes through here: text that comes from a run, a store or a
    file name must not move the cursor or give orders to the terminal.
    """
    return text.translate(ESCAPES)


def print_error(text: str) -> None:
    """Print to standard error, in red where that is a terminal (and NO_COLOR is not set)."""
    text = printable(redact(text))
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    with suppress(OSError):  # nobody can be told; the exit code still says it
        print(f"{RED}{text}{RESET}" if coloured else text, file=sys.stderr, flush=True)


def program() -> str:
    """How this program was started: ``ontogeny``, its relative path, or ``python -m cluster``."""
    name, started = "ontogeny", Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name in ("cluster", name):
        return f"python -m {started.parent.name}"
    return name if shutil.which(name) or started.name != name else relpath(sys.argv[0])
