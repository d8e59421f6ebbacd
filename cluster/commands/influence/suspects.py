"""``ontogeny suspects``: which training datums are behind a behaviour, or do not fit the others."""

import argparse
from functools import cache
from typing import TYPE_CHECKING

from capture.errors import ConfigError, at_least
from cluster.options.analysis import Analysis, Counting, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run, add_workers
from cluster.options.choices import JUDGE_METHODS, RETRAINED_EVIDENCE, UNEXPECTED_EVIDENCE

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.influence.queries.query import Query
    from analysis.influence.suspects.suspects import SuspectsConfig
    from analysis.influence.suspects.tables import Suspects
    from analysis.jobs.question import Question
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Ranks the training datums by how much they raise a query: the log-probability of a completion that
the model should not give, or a held-out loss. With --unexpected it ranks them by how badly the
model predicted them while it learned; --method held-out and order train it again on parts of the
data, and judge each datum by a model that lacks it (order: text alone). If corpus.plant,
corpus.scramble or corpus.flip changed training datums, the ranking is compared with that truth.
--remove N trains again without the first N and without N random ones, and shows what happens to the
query. Tables go to RUN/analysis/suspects/.

  ontogeny suspects runs/mine --prompt "zebra crossing" --completion "xyzzy" --remove 20
  ontogeny suspects runs/mine --name unexpected --unexpected"""
DEFAULT_METHOD, DEFAULT_EVIDENCE = "path", "residual"


def add(commands: "Commands") -> None:
    summary = "Rank the training data behind a behaviour, or data that do not fit."
    made = add_command(commands, "suspects", run, summary, TEXT)
    add_run(made)
    text = "as in ontogeny influence: loss, token:TOKEN, neuron:UNIT:N, …"
    made.add_argument("query", nargs="?", metavar="QUERY", help=text)
    text = "text before the completion that is asked about"
    made.add_argument("--prompt", metavar="TEXT", help=text)
    made.add_argument(
        "--completion", metavar="TEXT", help="text whose log-probability is the query"
    )
    text = "rank by how unexpected datums were, without a query"
    made.add_argument("--unexpected", action="store_true", help=text)
    text = f"for a query, default {DEFAULT_METHOD}: {', '.join(JUDGE_METHODS)}; with --unexpected, "
    text += f"default {DEFAULT_EVIDENCE}: {', '.join(UNEXPECTED_EVIDENCE)}"
    made.add_argument("--method", metavar="METHOD", help=text)
    text = "train again without the first N suspects; default 0: do not"
    made.add_argument("--remove", type=int, default=0, metavar="N", help=text)
    text = "random sets of N datums to train again without, default 3"
    made.add_argument("--controls", type=int, default=3, metavar="N", help=text)
    text = "with --method unrolled: retrainings without a random tenth of the datums that check "
    text += "it, default 2"
    made.add_argument("--checks", type=int, default=2, metavar="N", help=text)
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of these sets, default 0")
    add_workers(made)
    text = "suspects shown, default 10"
    made.add_argument("--rows", type=int, default=10, metavar="N", help=text)
    add_ray(made)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.influence.queries.parsing import build_queries
    from analysis.influence.suspects.suspects import (
        SuspectsConfig,
        rank_suspects,
        suspects_question,
        train_without,
        write_suspects,
    )
    from cluster.options.machines import retraining_sweep
    from cluster.terminal.influence.suspects import show_suspects

    at_least("--rows", arguments.rows, 1)
    asked = wanted_query(arguments)
    config = SuspectsConfig(
        evidence=wanted_evidence(arguments),
        remove=arguments.remove,
        controls=arguments.controls,
        checks=arguments.checks,
        seed=arguments.seed,
    )

    @cache
    def query(run: "Run") -> "Query":
        return build_queries(run, [asked])[0]

    def question(run: "Run") -> "Question":
        return suspects_question(query(run), config)

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Suspects":
        sweep = retraining_sweep(arguments, on, run.uri)
        with counting("scoring datums", unit(config)) as report:
            found = rank_suspects(run, query(run), config, report, sweep)
        if not config.remove:
            return found
        with counting("training again", "retrainings") as report:
            return train_without(run, query(run), found, config, report, sweep)

    def show(console: "Console", run: "Run", found: "Suspects") -> None:
        title = "" if arguments.unexpected else query(run).name
        show_suspects(console, run, found, config, query=title, rows=arguments.rows)

    return run_analysis(arguments, console, Analysis(question, compute, write_suspects, show))


def unit(config: "SuspectsConfig") -> str:
    """Return what the progress of scoring counts."""
    if config.evidence in RETRAINED_EVIDENCE:
        return "retrainings"
    return "checkpoints" if config.evidence in UNEXPECTED_EVIDENCE else "steps"


def wanted_query(arguments: argparse.Namespace) -> str | dict[str, str]:
    """Return the query as a word or as JSON; for ``--unexpected``, the held-out loss.

    Raises ``ConfigError`` unless exactly one thing is asked.
    """
    if (arguments.prompt is None) != (arguments.completion is None):
        lacking = "--completion" if arguments.completion is None else "--prompt"
        raise ConfigError(lacking, "is missing", "--prompt and --completion go together")
    given = [arguments.query is not None, arguments.prompt is not None, arguments.unexpected]
    if sum(given) != 1:
        problem = f"give a QUERY, --prompt and --completion, or --unexpected; got {sum(given)} of 3"
        raise ConfigError("suspects", problem)
    if arguments.prompt is not None:
        return {"prompt": arguments.prompt, "completion": arguments.completion}
    return arguments.query or "loss"


def wanted_evidence(arguments: argparse.Namespace) -> str:
    """Return the method or evidence; raise ``ConfigError`` for one of the other kind."""
    method = arguments.method
    if arguments.unexpected and method in JUDGE_METHODS:
        remedy = f"Choose from: {', '.join(UNEXPECTED_EVIDENCE)}"
        raise ConfigError("--method", f"got {method!r}, which needs a query", remedy)
    if not arguments.unexpected and method in UNEXPECTED_EVIDENCE:
        remedy = f"Choose from: {', '.join(JUDGE_METHODS)}"
        raise ConfigError("--method", f"got {method!r}, which needs --unexpected", remedy)
    return method or (DEFAULT_EVIDENCE if arguments.unexpected else DEFAULT_METHOD)
