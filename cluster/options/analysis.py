"""What all analysis commands share: open the run, compute, write the tables, print them.

``add_tables`` gives a command the options that say where its tables stand.

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

    from analysis.jobs.question import Question
    from analysis.run.given_model import Given
    from analysis.run.run import Run
    from cluster.options.machines import Machines

Found = TypeVar("Found")
Report = Callable[[int, int], None]
"""Called with what is done and what there is in all."""
Counting = Callable[[str, str], AbstractContextManager[Report]]
"""``counting("reading outliers", "rows")`` shows progress and yields what reports it."""


@dataclass(frozen=True)
class Analysis(Generic[Found]):
    """One analysis with its options chosen: functions that ``perform`` calls, ``check`` first."""

    question: "Callable[[Run], Question]"
    """What the tables answer; its command is the job."""
    compute: "Callable[[Run, Machines, Counting], Found]"
    write: "Callable[[Run, Found, Question, str], None]"
    """Stores the tables in ``run.tables``; the last argument is the name of the set."""
    show: "Callable[[Console, Run, Found], None]"
    """Prints the tables; not called with ``--quiet``."""
    check: "Callable[[Run], object]" = lambda run: None
    """Raises for names that the run does not have, before its tables are looked at."""


def add_tables(made: argparse.ArgumentParser) -> None:
    """Add ``--name``, ``--to`` and ``--replace``: where the tables stand."""
    command = made.prog.split()[-1]
    text = f"keep these tables beside others, in RUN/analysis/{command}/NAME/"
    made.add_argument("--name", default="", metavar="NAME", help=text)
    text = f"write tables to PLACE/analysis/{command}/, and look for tables there before RUN: "
    text += "a folder or prefix, for a run that you may only read"
    made.add_argument("--to", metavar="PLACE", help=text)
    text = "replace tables of another question that have the same name"
    made.add_argument("--replace", action="store_true", help=text)


def add_model(made: argparse.ArgumentParser) -> None:
    """Add ``--model``: the module of a custom loop, or where a model's parts are."""
    text = "function of yours that returns the model of a custom loop, its ontogeny.ModelParts, or "
    text += "both; its module is imported"
    made.add_argument("--model", metavar="MODULE:FUNCTION", help=text)


def given_model(arguments: argparse.Namespace) -> "Given | None":
    """Return the function that ``--model`` names; None without it."""
    from analysis.run.given_model import load_function

    return load_function(arguments.model) if vars(arguments).get("model") else None


def run_analysis(
    arguments: argparse.Namespace, console: "Console", analysis: Analysis[Found]
) -> int:
    """Open the run that the arguments name and perform the analysis; returns the exit code.

    With ``--json`` the tables go to standard output, and damaged shards that were left out to
    standard error.
    """
    from analysis.run.run import open_run
    from cluster.on_ray.job import require_persistent
    from cluster.options.machines import HERE, machines
    from cluster.terminal.as_json import print_as_json
    from cluster.terminal.console import make_console
    from cluster.terminal.tables import print_skipped

    if arguments.to:
        require_persistent("--to", arguments.to)
    skip_damaged = vars(arguments).get("skip_damaged", False)
    how = {"skip_damaged": skip_damaged, "tables": arguments.to, "model": given_model(arguments)}
    opened = open_run(arguments.run, **how)
    where = {"name": arguments.name, "replace": arguments.replace}
    # A command without --ray stays on this machine, also where RAY_ADDRESS names a cluster.
    with machines(arguments) if "ray" in arguments else nullcontext(HERE) as on:
        quiet = arguments.quiet or arguments.json
        found = perform(analysis, opened, console, quiet=quiet, on=on, **where)
    if arguments.json:
        print_as_json(found)
    print_skipped(make_console(stderr=True) if arguments.json else console, opened.skipped)
    return 0


def perform(
    analysis: Analysis[Found],
    run: "Run",
    console: "Console",
    *,
    quiet: bool,
    on: "Machines",
    name: str = "",
    replace: bool = False,
) -> Found:
    """Compute on the machines chosen, write the tables, then print them unless ``quiet``.

    Raises ``RunError`` without a committed step, and what ``check`` and ``claim`` raise, before
    anything is computed.
    """
    from analysis.jobs.claims import claim
    from analysis.jobs.tables import table_set
    from cluster.terminal.progress import counting

    run.require_shards("steps")
    analysis.check(run)
    question = analysis.question(run)
    claim(run, question, name, replace=replace)
    found = analysis.compute(run, on, partial(counting, console, quiet=quiet))
    analysis.write(run, found, question, name)
    if not quiet:
        analysis.show(console, run, found)
        place = f"{run.tables.uri}/analysis/{table_set(question.command, name)}/"
        console.print(f"Tables: {place}", markup=False, highlight=False, soft_wrap=True)
    return found
