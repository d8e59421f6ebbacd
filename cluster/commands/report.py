"""``ontogeny report``: pages to read in a browser."""

import argparse
from functools import partial

from rich.console import Console

from analysis.report.build import Built, ReportConfig, gather, report_store, write_report
from analysis.run.run import Run, open_run
from cluster.on_ray.job import require_lasting
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run, add_skip_damaged
from cluster.options.machines import HERE, Machines, machines
from cluster.terminal.progress import counting
from cluster.terminal.tables import print_skipped


def add(inner) -> None:
    text = """\
Writes static pages to RUN/report/, to be opened from disk or put on any web server: an overview, a
page for each neuron and token, and what the other analyses found. Needs ontogeny attribute first;
what else has not been run is left out, and the pages say which command does it. An earlier report
at the same place is replaced."""
    made = add_command(inner, "report", run, "Pages to read in a browser.", text)
    add_run(made)
    made.add_argument("--to", metavar="FOLDER", help="where to, default RUN/report")
    made.add_argument(
        "--neurons",
        type=int,
        default=ReportConfig.max_neurons,
        metavar="N",
        help=f"with a page each, the strongest first; default {ReportConfig.max_neurons}",
    )
    add_skip_damaged(made)
    add_ray(made)
    add_quiet(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    config = ReportConfig(max_neurons=arguments.neurons)
    if arguments.to:
        require_lasting("--to", arguments.to)
    opened = open_run(arguments.run, skip_damaged=arguments.skip_damaged)
    with machines(arguments) as on:
        report(opened, config, console, to=arguments.to, quiet=arguments.quiet, on=on)
    print_skipped(console, opened.skipped)
    return 0


def report(
    opened: Run,
    config: ReportConfig,
    console: Console,
    *,
    to: str | None = None,
    quiet: bool,
    on: Machines = HERE,
) -> None:
    """Write the pages and say where they are."""
    store = report_store(opened, to)
    with counting(console, "reading outliers", "rows", quiet=quiet) as tell:
        material = gather(opened, partial(on.run_job, report=tell), config)
    with counting(console, "writing pages", "neurons", quiet=quiet) as tell:
        built = write_report(material, store, tell)
    if not quiet:
        show(console, built)


def show(console: Console, built: Built) -> None:
    for job, command in built.missing.items():
        console.print(
            f"Not in the report, for it has not been run: {job} ({command})", markup=False
        )
    console.print(f"{built.num_files:,} files", highlight=False)
    console.print(built.index, markup=False, highlight=False, soft_wrap=True)
