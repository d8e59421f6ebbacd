"""Output streams that are closed, full, cut short or ASCII: no traceback, and a truthful exit code.

Every case is a process of its own, started by a shell as a user or a service manager starts it.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from tiny import make_run, tiny_config

COMMAND = f"{shlex.quote(sys.executable)} -m ontogeny"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    make_run(tiny_config(folder))
    return folder / "run"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash; ``ontogeny`` in it is this checkout's."""
    unset = {"PYTHONIOENCODING", "PYTHONUTF8", "COLUMNS", "NO_COLOR"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        ["bash", "-c", line.replace("ontogeny", COMMAND, 1)],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        ("--help", ">&-"),
        pytest.param("info RUN", ">&-", marks=pytest.mark.slow),
        ("verify RUN", "<&- >&- 2>&-"),
    ],
)
def test_without_stdout_it_works_and_says_nothing(run: Path, arguments: str, closed: str) -> None:
    done = shell(f"ontogeny {arguments.replace('RUN', str(run))} {closed}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_streams_an_error_keeps_its_exit_code() -> None:
    done = shell("ontogeny info nowhere >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        "info RUN",
        "--help",
        "",
        pytest.param("plan --model-params 1e9 --tokens 1e9 --json", marks=pytest.mark.slow),
    ],
)
def test_a_full_stdout_is_one_line_and_exit_code_2(run: Path, arguments: str) -> None:
    done = shell(f"ontogeny {arguments.replace('RUN', str(run))} > /dev/full")
    assert done.returncode == 2
    assert done.stderr == (
        "ontogeny: standard output: cannot be written: No space left on device. "
        "Free space where it goes, or send it elsewhere.\n"
    )


def test_a_full_stderr_keeps_the_exit_code() -> None:
    done = shell("ontogeny info nowhere 2> /dev/full")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("arguments", ["info RUN", "--help"])
def test_a_reader_that_has_gone_ends_it_with_141_and_no_words(run: Path, arguments: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = arguments.replace("RUN", str(run)).split()
    done = subprocess.run(
        [sys.executable, "-m", "ontogeny", *words],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_reader_of_the_first_line_gets_it(run: Path) -> None:
    done = shell(f"ontogeny info {run} | head -1")
    assert str(run) in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ("attribute RUN --no-ray", {"PYTHONIOENCODING": "ascii"}),
        ("info RUN", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    ],
)
def test_characters_that_a_terminal_lacks_are_replaced(
    run: Path, arguments: str, environment: dict[str, str]
) -> None:
    done = shell(f"ontogeny {arguments.replace('RUN', str(run))}", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert len(done.stdout.splitlines()) > 10
