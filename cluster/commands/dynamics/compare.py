"""``ontogeny compare``: how do runs differ, and where do they part?"""

import argparse
from typing import TYPE_CHECKING

from cluster.options.analysis import Analysis, Counting, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.run.run import Run
    from analysis.transitions.runs.compare import CompareConfig
    from analysis.transitions.runs.tables import Comparison
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Compares runs: the first step at which the datums or the loss differ, with those datums; the step at
which each metric has made half of its change, and the order of these; how alike the layers are
(linear CKA, at the ends of the runs); mean and deviation over runs; outlier runs (5 runs or more),
and whether outcomes are of two kinds (8 runs or more). Runs whose settings differ in more than
seeds form groups. Metrics are those of ontogeny transitions. Tables go to RUN/analysis/compare/ of
the first run.

  ontogeny compare runs/demo runs/smooth"""


def add(commands: "Commands") -> None:
    made = add_command(
        commands, "compare", run, "How do runs differ, and where do they part?", TEXT
    )
    made.add_argument("run", metavar="RUN", help="folder or prefix of a run, as in runs/demo")
    made.add_argument("others", metavar="RUN", nargs="+", help="further runs")
    text = "name of the tables of ontogeny trajectory, default those without a name"
    made.add_argument("--trajectory", default="", metavar="NAME", help=text)
    add_choices(made)
    add_tables(made)
    add_quiet(made, json=True)


def add_choices(made: argparse.ArgumentParser) -> None:
    """Options that choose curves and draws; ``ontogeny seeds`` has them too."""
    text = "only these curves; default all"
    made.add_argument("--metrics", nargs="+", action="extend", default=[], metavar="M", help=text)
    text = "draws of each bootstrap, default 199"
    made.add_argument("--draws", type=int, default=199, metavar="N", help=text)


def compare_config(arguments: argparse.Namespace, trajectory: str = "") -> "CompareConfig":
    from analysis.transitions.runs.compare import CompareConfig

    return CompareConfig(
        metrics=tuple(arguments.metrics), trajectory=trajectory, draws=arguments.draws
    )


def run(arguments: argparse.Namespace, console: "Console") -> int:
    return run_comparison(
        arguments, console, "compare", compare_config(arguments, arguments.trajectory)
    )


def run_comparison(
    arguments: argparse.Namespace, console: "Console", command: str, config: "CompareConfig"
) -> int:
    """Compare ``arguments.run`` with ``arguments.others``; returns the exit code."""
    from analysis.run.run import open_run
    from analysis.transitions.runs.compare import (
        compare_question,
        compare_runs,
        write_comparison,
    )
    from cluster.terminal.dynamics.compare import show_comparison

    others = [open_run(uri) for uri in arguments.others]

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Comparison":
        with counting("reading", "runs") as report:
            return compare_runs([run, *others], config, report)

    def show(console: "Console", run: "Run", found: "Comparison") -> None:
        show_comparison(console, found)

    uris = [other.uri for other in others]
    answer = Analysis(
        lambda run: compare_question(command, config, [run.uri, *uris]),
        compute,
        write_comparison,
        show,
    )
    return run_analysis(arguments, console, answer)
