"""``ontogeny gc``: list or remove files of a run that no marker names."""

import argparse
from datetime import timedelta
from typing import TYPE_CHECKING

from cluster.options.arguments import add_command, add_quiet, add_run
from cluster.options.choices import GARBAGE_AGE_MINUTES

if TYPE_CHECKING:
    from rich.console import Console

    from capture.maintenance.garbage import Garbage
    from cluster.options.arguments import Commands

TEXT = """\
Lists the files that an interrupted capture or analysis left: they lie in the run's folders, but no
marker names them. --remove removes them, except files younger than --older-than. It is refused
while a capture holds the run, and no capture can start meanwhile. Files that a marker names, whole
replayed records whose marker was lost, and files that are not the run's are never removed."""


def add(commands: "Commands") -> None:
    made = add_command(commands, "gc", run, "List or remove what an interruption left.", TEXT)
    add_run(made)
    made.add_argument("--remove", action="store_true", help="remove the files that are listed")
    made.add_argument(
        "--older-than",
        type=minutes_of,
        default=timedelta(minutes=GARBAGE_AGE_MINUTES),
        metavar="MINUTES",
        help=f"keep younger files, default {GARBAGE_AGE_MINUTES}",
    )
    add_quiet(made, json=True)


def minutes_of(text: str) -> timedelta:
    """Raises ``argparse.ArgumentTypeError`` for anything but a number of minutes from 0 up."""
    try:
        minutes = timedelta(minutes=float(text))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes") from error
    if minutes < timedelta(0):
        raise argparse.ArgumentTypeError(f"{text!r} is less than 0")
    return minutes


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from capture.maintenance.garbage import find_garbage, remove_garbage
    from capture.store import Store
    from cluster.terminal.as_json import print_as_json

    clean = remove_garbage if arguments.remove else find_garbage
    found = clean(Store(arguments.run), arguments.older_than)
    if arguments.json:
        print_as_json({"removed": arguments.remove, "files": found})
    elif not arguments.quiet:
        show(console, found, removed=arguments.remove)
    return 0


def show(console: "Console", found: "list[Garbage]", *, removed: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if not found:
        console.print("Nothing to remove: a marker names every file of the run.")
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("file", overflow="fold")
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("")
    old = "removed" if removed else "to remove"
    for garbage in found:
        age = str(garbage.age).partition(".")[0]
        table.add_row(
            escape(garbage.key), age, escape(f"kept: {garbage.reason}") if garbage.kept else old
        )
    console.print(table)
    num_kept = sum(garbage.kept for garbage in found)
    console.print(f"{len(found) - num_kept} files {old}, {num_kept} kept.")
    if not removed and num_kept < len(found):
        console.print("Nothing was removed; to remove files, add --remove.")
