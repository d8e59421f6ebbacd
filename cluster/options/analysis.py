"""The body that all analysis commands share: open the run, compute, write the tables, print them.

Heavy modules are imported when a command runs, so that help does not wait for them.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.run.run import Run
    from cluster.options.machines import Machines

Found = TypeVar("Found")
Report = Callable[[int, int], None]
"""Called with what is done and what there is in all."""
Counting = Callable[[str, str], AbstractContextManager[Report]]
"""``counting("reading outliers", "rows")`` shows progress and yields what reports it."""


@dataclass(frozen=True)
class Analysis(Generic[Found]):
    """One analysis with its options chosen: three functions that ``perform`` calls in turn."""

    compute: "Callable[[Run, Machines, Counting], Found]"
    write: "Callable[[Run, Found], None]"
    """Stores the tables in the run."""
    show: "Callable[[Console, Run, Found], None]"
    """Prints the tables; not called with ``--quiet``."""


def run_analysis(
    arguments: argparse.Namespace, console: "Console", analysis: Analysis[Found]
) -> int:
    """Open the run that the arguments name and perform the analysis; returns the exit code.

    With ``--json`` the tables go to standard output, and damaged shards that were left out to
    standard error.
    """
    from analysis.run.run import open_run
    from cluster.options.machines import HERE, machines
    from cluster.terminal.as_json import print_as_json
    from cluster.terminal.console import make_console
    from cluster.terminal.tables import print_skipped

    opened = open_run(arguments.run, skip_damaged=vars(arguments).get("skip_damaged", False))
    # A command without --ray stays on this machine, also where RAY_ADDRESS names a cluster.
    with machines(arguments) if "ray" in arguments else nullcontext(HERE) as on:
        quiet = arguments.quiet or arguments.json
        found = perform(analysis, opened, console, quiet=quiet, on=on)
    if arguments.json:
        print_as_json(found)
    print_skipped(make_console(stderr=True) if arguments.json else console, opened.skipped)
    return 0


def perform(
    analysis: Analysis[Found], run: "Run", console: "Console", *, quiet: bool, on: "Machines"
) -> Found:
    """Compute on the machines chosen, write the tables, then print them unless ``quiet``."""
    from cluster.terminal.progress import counting

    found = analysis.compute(run, on, partial(counting, console, quiet=quiet))
    analysis.write(run, found)
    if not quiet:
        analysis.show(console, run, found)
    return found
