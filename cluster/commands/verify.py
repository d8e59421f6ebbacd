"""``ontogeny verify``: check every file of a run."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from capture.errors import NOT_TRUSTWORTHY
from cluster.options.arguments import add_command, add_quiet, add_run

if TYPE_CHECKING:
    from rich.console import Console

    from capture.maintenance.verify import Finding
    from cluster.options.arguments import Commands

TEXT = """\
Recomputes every checksum and row count, also of the tables in analysis/, and follows the chain of
markers; names each damaged, missing or unlisted file. Exit code 3 if any is damaged or missing. An
unlisted file was left by an interruption; ontogeny gc removes it."""


def add(commands: "Commands") -> None:
    made = add_command(commands, "verify", run, "Check that every file of a run is intact.", TEXT)
    add_run(made)
    add_quiet(made)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from rich.filesize import decimal

    from capture.maintenance.verify import verify
    from capture.store import Store

    checked = []
    found = verify(Store(arguments.run), checked.append)
    if not arguments.quiet:
        size = decimal(sum(file.num_bytes for file in checked))
        show(console, found, f"{len(checked)} files, {size}")
    return NOT_TRUSTWORTHY if any(f.state != "unlisted" for f in found) else 0


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
