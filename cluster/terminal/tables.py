"""Output that several commands share: tables, lists of tokens, suggested commands."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capture.maintenance.verify import Finding
from cluster.terminal.plain import program


def data_table(first: str, *others: str) -> Table:
    """A table whose first column is text and whose other columns are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def print_table(console: Console, title: str, table: Table) -> None:
    console.print(f"\n[bold]{escape(title)}[/]")
    console.print(table)


def print_skipped(console: Console, skipped: Sequence[Finding]) -> None:
    """Print the damaged shards that were left out of an answer."""
    if skipped:
        console.print(f"\n{len(skipped)} damaged shards were left out:", style="red")
    for finding in skipped:
        text = f"  {finding.key}: {finding.state} {finding.detail}".rstrip()
        console.print(text, markup=False, soft_wrap=True)


def token_list(tokens: Iterable[str], most: int) -> str:
    """The first ``most`` tokens, and how many more there are."""
    names = list(tokens)
    return " ".join(names[:most]) + (f"  (+{len(names) - most})" if len(names) > most else "")


def next_commands(console: Console, commands: Sequence[str]) -> None:
    """Print commands to try next, as they can be typed here."""
    console.print("\nNext:")
    for command in commands:
        console.print(f"  {program()} {command}", markup=False, soft_wrap=True)
