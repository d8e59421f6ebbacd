"""Output that several commands share: tables, lists of tokens, suggested commands."""

import re
from collections.abc import Iterable, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.markup import escape, render
from rich.table import Column, Table

from capture.maintenance.verify import Finding
from cluster.terminal.plain import program

LEAST_CELLS = 16
"""Width below which a column of text is not folded, if that can be avoided."""


def data_table(first: str, *others: str) -> Table:
    """A table whose first column is text and whose other columns are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def print_table(console: Console, title: str, table: Table) -> None:
    """Print a title and a table, whose cells are folded where the console is too narrow."""
    fold_to_fit(table, console.width)
    console.print(f"\n[bold]{escape(title)}[/]")
    console.print(table)


def fold_to_fit(table: Table, width: int) -> None:
    """Let the first column fold where the columns do not fit, and all of them if need be.

    Where the first column alone folds, names are folded after a dot, if their parts fit.
    A number or a name that is cut ("0.12…") would be a wrong one.
    """
    missing, widest = cells_needed(table) - width, column_width(table.columns[0])
    spare = max(0, widest - LEAST_CELLS)
    if 0 < missing <= spare:
        first = table.columns[0]
        first._cells = [fold_name(cell, widest - missing) for cell in first.cells]
    for column in table.columns[: 0 if missing <= 0 else 1 if missing <= spare else None]:
        column.no_wrap, column.overflow = False, "fold"


def fold_name(cell: RenderableType, width: int) -> RenderableType:
    """Break a name into lines after its dots, each as full as the width allows.

    Text with markup stays as it is, because a tag must not be broken.
    """
    if not isinstance(cell, str) or "[" in cell or cell_len(cell) <= width:
        return cell
    lines = [""]
    for part in re.split(r"(?<=\.)", cell):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def cells_needed(table: Table) -> int:
    """The width of a table whose fixed columns are whole and whose others are narrow."""
    frame = 3 * len(table.columns) + 1  # a cell on both sides of each column, and the box
    return frame + sum(
        column_width(column) if column.no_wrap else LEAST_CELLS for column in table.columns
    )


def column_width(column: Column) -> int:
    return max(cell_len(render(str(cell)).plain) for cell in (column.header, *column.cells))


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
