"""``ontogeny gc``: what lies in a run that no marker names?"""

import argparse
from datetime import timedelta

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capture.maintenance.garbage import GRACE, Garbage, find_garbage, remove_garbage
from capture.store.store import Store
from cluster.options.arguments import add_command, add_quiet, add_run


def add(inner) -> None:
    text = """\
Lists the files that an interrupted capture or analysis left: they belong to a run's folders, but no
marker names them. With --remove they are removed, unless they are younger than --older-than or a
capture holds the run. What a marker names and foreign files are never touched."""
    made = add_command(inner, "gc", run, "List or remove what an interruption left.", text)
    add_run(made)
    made.add_argument("--remove", action="store_true", help="remove what is listed")
    minutes = GRACE.seconds // 60
    made.add_argument(
        "--older-than",
        type=minutes_of,
        default=GRACE,
        metavar="MINUTES",
        help=f"keep what is younger, default {minutes}",
    )
    add_quiet(made)


def minutes_of(text: str) -> timedelta:
    """Raises ``argparse.ArgumentTypeError`` for what is no number of minutes."""
    try:
        minutes = timedelta(minutes=float(text))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes") from error
    if minutes < timedelta(0):
        raise argparse.ArgumentTypeError(f"{text!r} is less than 0")
    return minutes


def run(arguments: argparse.Namespace, console: Console) -> int:
    clean = remove_garbage if arguments.remove else find_garbage
    found = clean(Store(arguments.run), arguments.older_than)
    if not arguments.quiet:
        show(console, found, removed=arguments.remove)
    return 0


def show(console: Console, found: list[Garbage], *, removed: bool) -> None:
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
        table.add_row(escape(garbage.key), age, "kept: too young" if garbage.kept else old)
    console.print(table)
    num_kept = sum(garbage.kept for garbage in found)
    console.print(f"{len(found) - num_kept} files {old}, {num_kept} kept.")
    if not removed and num_kept < len(found):
        console.print("Nothing was removed; that takes --remove.")
