"""``ontogeny serve``: the pages of the report, made when they are asked for."""

import argparse
from typing import TYPE_CHECKING

from cluster.commands.pages.shown import add_shown, shown_config, shown_runs
from cluster.options.arguments import add_command, add_quiet, add_run

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.report.on_demand import PagesOnDemand
    from cluster.options.arguments import Commands

PORT = 8765
TEXT = """\
Shows the pages of ontogeny report to a browser on this machine. It writes nothing: each page is
made when it is opened, so that a model of any size has pages for all neurons at once. Run ontogeny
attribute first. Other machines cannot connect; for a run on another machine, forward the port with
ssh -L 8765:127.0.0.1:8765 HOST. Ctrl-C ends it."""


def add(commands: "Commands") -> None:
    made = add_command(commands, "serve", run, "The report's pages, made on demand.", TEXT)
    add_run(made)
    text = f"port on this machine, default {PORT}; 0 takes any that is free"
    made.add_argument("--port", type=int, default=PORT, metavar="N", help=text)
    add_shown(made, default=None)
    add_quiet(made)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.report.on_demand import FIRST
    from cluster.local.page_server import page_server
    from cluster.terminal.tables import print_skipped

    pages = gather(arguments, console)
    print_skipped(console, pages.data.run.skipped)
    with page_server(pages.read, FIRST, arguments.port) as server:
        address = f"http://{server.server_address[0]}:{server.server_address[1]}/"
        console.print(f"{address} (Ctrl-C ends it)", markup=False, highlight=False)
        server.serve_forever()
    return 0


def gather(arguments: argparse.Namespace, console: "Console") -> "PagesOnDemand":
    """Read the tables that the pages show."""
    from functools import partial

    from analysis.report.build import gather_report_data
    from analysis.report.on_demand import PagesOnDemand
    from cluster.local.threads import run_job
    from cluster.terminal.progress import counting

    config = shown_config(arguments)
    opened, other = shown_runs(arguments)
    with counting(console, "reading the run", "rows", quiet=arguments.quiet) as progress:
        job = partial(run_job, report=progress)
        data = gather_report_data(opened, job, config, keep=False, other=other, on_demand=True)
    return PagesOnDemand(data)
