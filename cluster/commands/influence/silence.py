"""``ontogeny silence``: take out of the model what some training datums moved."""

import argparse
from functools import cache
from typing import TYPE_CHECKING

from capture.errors import ConfigError, RunError
from cluster.options.analysis import Analysis, Counting, add_tables, run_analysis
from cluster.options.arguments import (
    add_any_number,
    add_command,
    add_quiet,
    add_ray,
    add_run,
    add_workers,
)
from cluster.options.ranges import parse_numbers

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.influence.queries.query import Query
    from analysis.influence.silencing.silencing import SilenceConfig
    from analysis.influence.silencing.tables import Silenced
    from analysis.jobs.question import Question
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Adds up what some datums' gradients still contribute to each last weight (their lifetime shifts; one
backward replay), sets the weights that they moved most to 0, and evaluates queries and the loss on
held-out text. Random sets of as many other datums are silenced in the same way. With --retrain the
run is also trained again without the datums; then 0 effect left means: as if they had never been.
Tables go to RUN/analysis/silence/.

  ontogeny silence runs/mine loss --planted --retrain --name planted
  ontogeny silence runs/mine loss --suspects 20 --from plugh --name suspects"""


def add(commands: "Commands") -> None:
    summary = "Take out what some data moved, without training again."
    made = add_command(commands, "silence", run, summary, TEXT)
    add_run(made)
    text = "as in ontogeny influence; the loss on held-out text is always evaluated"
    add_any_number(made, "queries", metavar="QUERY", help=text)
    text = "text before the completion whose log-probability is a query"
    made.add_argument("--prompt", metavar="TEXT", help=text)
    made.add_argument("--completion", metavar="TEXT", help="text after it")
    text = "silence these datums: numbers and ranges, as in 0-9,12"
    made.add_argument("--datums", metavar="IDS", help=text)
    text = "silence the datums in which corpus.plant planted something"
    made.add_argument("--planted", action="store_true", help=text)
    text = "silence the first N suspects of ontogeny suspects"
    made.add_argument("--suspects", type=int, metavar="N", help=text)
    text = "name of these suspects' tables, if they have one"
    made.add_argument("--from", dest="source", default="", metavar="NAME", help=text)
    text = (
        "shares of the weights of all matrices to set to 0, default 0.0001 0.0003 0.001 0.003 0.01"
    )
    made.add_argument("--shares", type=float, nargs="+", metavar="SHARE", help=text)
    text = "random sets of as many datums, default 3"
    made.add_argument("--controls", type=int, default=3, metavar="N", help=text)
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of these sets, default 0")
    text = "also train again without the datums"
    made.add_argument("--retrain", action="store_true", help=text)
    add_workers(made)
    add_ray(made)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.influence.queries.parsing import build_queries
    from analysis.influence.silencing.silencing import silence, silence_question, write_silenced
    from cluster.options.machines import retraining_sweep
    from cluster.terminal.influence.silence import show_silenced

    asked = wanted_queries(arguments)

    @cache
    def queries(run: "Run") -> "list[Query]":
        return build_queries(run, asked)

    @cache
    def config(run: "Run") -> "SilenceConfig":
        return wanted_config(run, arguments)

    def question(run: "Run") -> "Question":
        return silence_question(queries(run), config(run))

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Silenced":
        sweep = retraining_sweep(arguments, on, run.uri)
        with counting("adding up shifts", "steps") as report:
            return silence(run, queries(run), config(run), report, sweep)

    def show(console: "Console", run: "Run", found: "Silenced") -> None:
        show_silenced(console, found, num_datums=len(config(run).datums))

    return run_analysis(arguments, console, Analysis(question, compute, write_silenced, show))


def wanted_queries(arguments: argparse.Namespace) -> list[str | dict[str, str]]:
    """Return the queries as words or JSON, the held-out loss last.

    Raises ``ConfigError`` for a prompt without completion.
    """
    if (arguments.prompt is None) != (arguments.completion is None):
        lacking = "--completion" if arguments.completion is None else "--prompt"
        raise ConfigError(lacking, "is missing", "--prompt and --completion go together")
    asked: list[str | dict[str, str]] = [each for each in arguments.queries if each != "loss"]
    if arguments.prompt is not None:
        asked.append({"prompt": arguments.prompt, "completion": arguments.completion})
    return [*asked, "loss"]


def wanted_config(run: "Run", arguments: argparse.Namespace) -> "SilenceConfig":
    """Return the configuration; raises ``ConfigError`` unless exactly one option names datums."""
    from analysis.influence.silencing.silencing import SHARES, SilenceConfig

    given = [arguments.datums is not None, arguments.planted, arguments.suspects is not None]
    if sum(given) != 1:
        problem = f"give one of --datums, --planted and --suspects; got {sum(given)}"
        raise ConfigError("ontogeny silence", problem)
    return SilenceConfig(
        datums=tuple(wanted_datums(run, arguments)),
        shares=tuple(arguments.shares or SHARES),
        controls=arguments.controls,
        retrain=arguments.retrain,
        seed=arguments.seed,
    )


def wanted_datums(run: "Run", arguments: argparse.Namespace) -> list[int]:
    """Return the datums that the options name."""
    from analysis.influence.suspects.suspects import planted_kinds
    from analysis.influence.suspects.tables import RANKING
    from analysis.jobs.tables import read_table, table_set

    if arguments.datums is not None:
        return parse_numbers("--datums", arguments.datums, run.num_datums, "training datums")
    if arguments.planted:
        found = (planted_kinds(run) == "plant").nonzero()[0].tolist()
        if not found:
            remedy = "Name datums with --datums, or plant some with corpus.plant"
            raise RunError(run.uri, "has nothing planted in its text", remedy)
        return found
    if not 1 <= arguments.suspects <= run.num_datums:
        problem = f"got {arguments.suspects}, must be 1 to {run.num_datums}"
        raise ConfigError("--suspects", problem)
    named = read_table(run, table_set("suspects", arguments.source), "suspects", RANKING)
    return named.sort_values("rank")["datum"].head(arguments.suspects).tolist()
