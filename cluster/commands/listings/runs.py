"""``ontogeny runs``: the runs under a folder."""

import argparse
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from capture.errors import CaptureError, RunError
from cluster.options.arguments import add_command

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.options.arguments import Commands

TEXT = """\
Lists each run with its steps, its state (complete, running, not complete, damaged) and the bytes
that its markers name. Checks no checksums: see ontogeny verify. For a run on a store: ontogeny info
URI"""
SIGN = "run.yaml"
"""The file that every run has."""


def add(commands: "Commands") -> None:
    made = add_command(commands, "runs", run, "The runs under a folder.", TEXT)
    text = "where to look, default runs"
    made.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help=text)
    made.add_argument("--json", action="store_true", help="print JSON instead, sizes in bytes")


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from cluster.terminal.as_json import print_as_json

    folder = Path(arguments.folder)
    if not folder.is_dir():
        remedy = "Name a folder on this machine; for a run on a store: ontogeny info URI"
        raise RunError(arguments.folder, "is no folder", remedy)
    found = [summary(path) for path in run_folders(folder)]
    if arguments.json:
        print_as_json(found)
    else:
        show(console, found, arguments.folder)
    return 0


def run_folders(folder: Path) -> Iterator[Path]:
    """Folders that hold a run, by name; links are not followed, and runs not searched."""
    for path, names, files in os.walk(folder):
        names[:] = [] if SIGN in files else sorted(n for n in names if not n.startswith("."))
        if SIGN in files:
            yield Path(path)


def summary(path: Path) -> dict[str, object]:
    """Steps, state and bytes of a run; a run that cannot be read says why."""
    from analysis.run.run import open_run
    from capture.errors import IncompleteRunWarning
    from capture.format.markers import total_bytes
    from capture.store.lease import running_capture

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IncompleteRunWarning)
            opened = open_run(path)
        whole = opened.steps_done == opened.num_steps
        state = "complete" if whole else "not complete"
        state = state if opened.steps_done else "empty"
        state = "running" if running_capture(opened.store) else state
        steps = {"steps_done": opened.steps_done, "num_steps": opened.num_steps}
        size = total_bytes([opened.start, *opened.segments])
        return {"run": str(path), **steps, "state": state, "bytes": size, "problem": ""}
    except CaptureError as error:
        steps = {"steps_done": None, "num_steps": None}
        return {"run": str(path), **steps, "state": "damaged", "bytes": None, "problem": str(error)}


def show(console: "Console", found: list[dict[str, object]], folder: str) -> None:
    from rich.filesize import decimal
    from rich.markup import escape

    from cluster.terminal.tables import data_table, fold_to_fit

    if not found:
        console.print(f"No runs under {folder}. Make one with: ontogeny demo", markup=False)
        return
    table = data_table("run", "steps", "state", "size")
    for each in found:
        done, total, size = each["steps_done"], each["num_steps"], each["bytes"]
        cells = (f"{done:,} of {total:,}", decimal(size)) if isinstance(size, int) else ("–", "–")
        table.add_row(escape(str(each["run"])), cells[0], str(each["state"]), cells[1])
    fold_to_fit(table, console.width)
    console.print(table)
    for each in found:
        if each["problem"]:
            console.print(str(each["problem"]), markup=False, soft_wrap=True)
