"""``ontogeny info``: what a run holds."""

import argparse
from typing import TYPE_CHECKING

from cluster.options.arguments import add_command, add_run

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.options.arguments import Commands


def add(commands: "Commands") -> None:
    made = add_command(commands, "info", run, "What a run holds: settings, progress, sizes.")
    add_run(made)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.run.run import open_run
    from cluster.terminal.run_tables import show_run

    show_run(console, open_run(arguments.run))
    return 0
