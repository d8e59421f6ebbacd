"""Options of ``report`` and ``serve``: which run and which tables the pages show."""

import argparse
from typing import TYPE_CHECKING

from cluster.options.analysis import add_model, given_model
from cluster.options.arguments import add_skip_damaged

if TYPE_CHECKING:
    from analysis.report.build import ReportConfig
    from analysis.run.run import Run


def add_shown(made: argparse.ArgumentParser, *, default: int | None) -> None:
    """Add the options; ``default``: number of neurons with a page, None for all."""
    made.add_argument(
        "--neurons",
        type=int,
        default=default,
        metavar="N",
        help="neurons with a page of their own, those with the most evidence; "
        f"default {'all' if default is None else default}",
    )
    text = "name of the attribution to show, default the one without a name"
    made.add_argument("--attribution", default="", metavar="NAME", help=text)
    made.add_argument(
        "--set",
        nargs="+",
        action="extend",
        type=named_set,
        default=[],
        dest="sets",
        metavar="ANALYSIS=NAME",
        help="named tables of other analyses to show, as in ablate=heads",
    )
    text = "where analyses wrote their tables with --to, looked at before RUN"
    made.add_argument("--tables", metavar="PLACE", help=text)
    text = "another run to compare with: figures, losses, and tokens of neurons"
    made.add_argument("--compare", metavar="OTHER", help=text)
    add_skip_damaged(made)
    add_model(made)


def named_set(text: str) -> tuple[str, str]:
    """``ablate=heads`` → analysis and name; raises ``ArgumentTypeError``."""
    job, sign, name = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be ANALYSIS=NAME, as in ablate=heads")
    return job, name


def shown_config(arguments: argparse.Namespace) -> "ReportConfig":
    """Return the settings of the pages; raises ``ConfigError``."""
    from analysis.report.build import ReportConfig

    return ReportConfig(
        max_neurons=arguments.neurons,
        attribution=arguments.attribution,
        sets=dict(arguments.sets),
    )


def shown_runs(arguments: argparse.Namespace) -> "tuple[Run, Run | None]":
    """Open the run, and the one to compare with; raises ``RunError``, and ``ConfigError``."""
    from analysis.run.run import open_run
    from capture.errors import ConfigError

    how = {"tables": arguments.tables, "model": given_model(arguments)}
    opened = open_run(arguments.run, skip_damaged=arguments.skip_damaged, **how)
    if arguments.tables and not opened.tables.keys("analysis"):
        problem = f"got {arguments.tables}, which holds no tables"
        raise ConfigError("--tables", problem, "Give the place that an analysis had as --to")
    return opened, open_run(arguments.compare) if arguments.compare else None
