"""``ontogeny verify``: check every file of a run."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from capture.errors import NOT_TRUSTWORTHY
from cluster.options.arguments import add_command, add_quiet, add_run

if TYPE_CHECKING:
    from rich.console import Console

    from capture.maintenance.verify import Finding
    from capture.store import Store
    from cluster.options.arguments import Commands

TEXT = """\
Recomputes every checksum and row count, also of the tables in analysis/, and follows the chain of
markers; names each damaged, missing or unlisted file. Exit code 3 if any is damaged or missing. An
unlisted file was left by an interruption, or a running capture is about to name it; ontogeny gc
removes what an interruption left. Says if a capture is running, or if the run is not complete."""


def add(commands: "Commands") -> None:
    made = add_command(commands, "verify", run, "Check that every file of a run is intact.", TEXT)
    add_run(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from rich.filesize import decimal

    from capture.maintenance.verify import verify
    from capture.store import Store
    from cluster.terminal.as_json import print_as_json

    checked = []
    store = Store(arguments.run)
    found = verify(store, checked.append)
    if arguments.json:
        print_as_json(
            {
                "files": len(checked),
                "bytes": sum(file.num_bytes for file in checked),
                "findings": found,
                "progress": progress(store),
            }
        )
    elif not arguments.quiet:
        size = decimal(sum(file.num_bytes for file in checked))
        show(console, found, f"{len(checked)} files, {size}")
        show_progress(console, store)
    return NOT_TRUSTWORTHY if any(f.state != "unlisted" for f in found) else 0


def show_progress(console: "Console", store: "Store") -> None:
    if line := progress(store):
        console.print(line, markup=False, soft_wrap=True)


def progress(store: "Store") -> str:
    """Say that a capture is running, or that the run holds fewer steps than it should; else ""."""
    from capture.errors import RunError, ShardError
    from capture.format.chain import read_segments, require_start
    from capture.format.extent import read_extent, shortfall
    from capture.store.lease import running_capture

    try:
        if holder := running_capture(store):
            return f"A capture is running: {holder}."
        segments = read_segments(store)
        steps_done = segments[-1].end_step if segments else 0
        problem = shortfall(
            store, len(segments), steps_done, read_extent(store, require_start(store))
        )
    except (RunError, ShardError):
        return ""  # it is among the findings
    return f"The run {problem}." if problem else ""


def show(console: "Console", found: "Sequence[Finding]", checked: str) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if not found:
        console.print(f"Intact: {checked}; every checksum and row count matches its marker.")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("file", "state", "detail"):
        table.add_column(name, overflow="fold")
    for finding in found:
        table.add_row(escape(finding.key), finding.state, escape(finding.detail))
    console.print(table)
    damaged = sum(finding.state != "unlisted" for finding in found)
    console.print(
        f"{checked} checked; {damaged} damaged or missing, {len(found) - damaged} unlisted."
    )
