"""Run one part of the check in a process of its own, whatever happens in it."""

import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TAIL_CHARACTERS = 4_000
"""Length of the end of a part's output that is kept."""


@dataclass(frozen=True)
class Part:
    """A command of the check."""

    name: str
    command: tuple[str, ...]
    seconds: int
    """Limit; the part is stopped then, with every process that it started."""
    json_option: str = ""
    """Option that takes the place of a JSON file with the part's result; empty: there is none."""
    from_output: bool = False
    """Whether the last line of the output is the result, as JSON."""


def run_part(part: Part) -> dict[str, object]:
    """Run a part; return its result, the end of its output, and what went wrong, if anything."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [*part.command, *([part.json_option, str(place)] if part.json_option else [])]
        problem = run_limited(command, log, part.seconds)
        output = log.read_text(errors="replace")
        text = place.read_text() if place.exists() else last_line(output) * part.from_output
    result, unreadable = read_result(text)
    if not problem and (part.json_option or part.from_output):
        problem = unreadable
    return {
        "problem": problem,
        "seconds": round(time.monotonic() - began, 1),
        "result": result,
        "output": output[-TAIL_CHARACTERS:],
    }


def run_limited(command: list[str], log: Path, seconds: float) -> str:
    """Run a command with its output in a file; return what went wrong, or ""."""
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return f"did not start: {error}"
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"took longer than {seconds:g} s"
    return f"ended with {code}" if code else ""


def last_line(output: str) -> str:
    return output.strip().rpartition("\n")[2]


def read_result(text: str) -> tuple[object, str]:
    """Return the result, and what is wrong with it, or ""."""
    try:
        return json.loads(text), ""
    except ValueError:
        return None, "gave no result"
