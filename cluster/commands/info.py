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
    made.add_argument("--json", action="store_true", help="print JSON instead, sizes in bytes")


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.run.run import open_run
    from cluster.terminal.as_json import print_as_json
    from cluster.terminal.run_tables import run_values, show_run

    opened = open_run(arguments.run)
    if arguments.json:
        print_as_json(run_values(opened))
    else:
        show_run(console, opened)
    return 0
