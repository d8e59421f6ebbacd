"""``ontogeny report``: pages to read in a browser."""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from cluster.commands.pages.shown import add_shown, shown_config, shown_runs
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run
from cluster.options.choices import REPORT_NEURONS

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.report.build import ReportConfig, WrittenReport
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Writes static pages to RUN/report/, to open from disk or put on any web server: an overview, a page
for each neuron and token, and what the other analyses found. Run ontogeny attribute first. The
report leaves out analyses that have not been run, and says which command runs them. It replaces an
earlier report at the same place. For a large model, ontogeny serve makes the same pages one at a
time, without a file."""


def add(commands: "Commands") -> None:
    made = add_command(commands, "report", run, "Pages to read in a browser.", TEXT)
    add_run(made)
    made.add_argument("--to", metavar="FOLDER", help="where to write, default RUN/report")
    add_shown(made, default=REPORT_NEURONS)
    add_ray(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from cluster.on_ray.job import require_persistent
    from cluster.options.machines import machines
    from cluster.terminal.as_json import print_as_json
    from cluster.terminal.console import make_console
    from cluster.terminal.tables import print_skipped

    config = shown_config(arguments)
    if arguments.to:
        require_persistent("--to", arguments.to)
    opened, other = shown_runs(arguments)
    quiet = arguments.quiet or arguments.json
    with machines(arguments) as on:
        to = arguments.to
        built = report(opened, config, console, to=to, other=other, quiet=quiet, on=on)
    if arguments.json:
        print_as_json(built)
    print_skipped(make_console(stderr=True) if arguments.json else console, opened.skipped)
    return 0


def report(
    opened: "Run",
    config: "ReportConfig",
    console: "Console",
    *,
    to: str | None = None,
    other: "Run | None" = None,
    quiet: bool,
    on: "Machines",
) -> "WrittenReport":
    """Write the pages and print where they are; ``other`` is a run to compare with."""
    from analysis.report.build import gather_report_data, report_store, write_report
    from cluster.terminal.progress import counting

    store = report_store(opened, to)
    with counting(console, "reading the run", "rows or datums", quiet=quiet) as progress:
        run_job = partial(on.run_job, report=progress)
        keep = to is None
        data = gather_report_data(opened, run_job, config, keep=keep, other=other, report=progress)
    with counting(console, "writing pages", "neurons", quiet=quiet) as progress:
        built = write_report(data, store, progress)
    if not quiet:
        show(console, built)
    return built


def show(console: "Console", built: "WrittenReport") -> None:
    for job, tables in built.used.items():
        console.print(f"Tables of {job}: {tables.place}", markup=False)
    for job, command in built.missing.items():
        console.print(f"Not in the report, because it was not run: {job} ({command})", markup=False)
    console.print(f"{built.num_files:,} files", highlight=False)
    console.print(built.index, markup=False, highlight=False, soft_wrap=True)
