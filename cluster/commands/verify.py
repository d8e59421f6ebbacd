"""``ontogeny verify``: is every file of a run intact?"""

import argparse
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from capture.errors import NOT_TRUSTWORTHY
from capture.maintenance.verify import Finding
from capture.maintenance.verify import verify as verify_run
from capture.store.store import Store
from cluster.options.arguments import add_command, add_quiet, add_run


def add(inner) -> None:
    text = """\
Recomputes every checksum and row count, of the tables in analysis/ too, and follows the chain of
markers; names each damaged, missing or unlisted file. Exit code 3 if any is damaged or missing.
What is only unlisted an interruption left; ontogeny gc removes it."""
    made = add_command(inner, "verify", run, "Is every file of a run intact?", text)
    add_run(made)
    add_quiet(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    checked = []
    found = verify_run(Store(arguments.run), checked.append)
    if not arguments.quiet:
        size = decimal(sum(file.num_bytes for file in checked))
        show(console, found, f"{len(checked)} files, {size}")
    return NOT_TRUSTWORTHY if any(f.state != "unlisted" for f in found) else 0


def show(console: Console, found: Sequence[Finding], checked: str) -> None:
    if not found:
        console.print(f"Intact: {checked}, every checksum and row count as its marker says.")
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
