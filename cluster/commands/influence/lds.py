"""``ontogeny lds``: judge influence methods by retraining."""

import argparse
from functools import cache
from typing import TYPE_CHECKING

from capture.errors import ConfigError
from cluster.options.analysis import Analysis, Counting, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run, add_workers
from cluster.options.choices import JUDGE_DEFAULTS, JUDGE_METHODS

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.influence.judge.tables import Judged
    from analysis.influence.queries.query import Query
    from analysis.jobs.question import Question
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = f"""\
Trains the run again on random subsets of its datums, with the same order and seeds, and compares
what happens to each query with what the scores of each method predict: the linear datamodeling
score (LDS). Random scores are the null. Retrainings are kept in RUN/analysis/retrain/ and used
again. Tables go to RUN/analysis/lds/. Methods: {", ".join(JUDGE_METHODS)}.

  ontogeny lds runs/smooth datum:validation:0 datum:validation:1 --workers 4
  ontogeny lds runs/smooth neuron:layers.1.linear2.weight:3 --name neuron --keep 0.9 --top 0.05"""


def add(commands: "Commands") -> None:
    made = add_command(commands, "lds", run, "Judge influence methods by retraining.", TEXT)
    add_run(made)
    text = "as in ontogeny influence: datum:validation:0, token:TOKEN, neuron:UNIT:N, FILE.jsonl, …"
    made.add_argument("queries", nargs="+", metavar="QUERY", help=text)
    text = f"comma-separated; default {','.join(JUDGE_DEFAULTS)}"
    made.add_argument("--methods", default=",".join(JUDGE_DEFAULTS), metavar="LIST", help=text)
    text = "shares of the datums that subsets keep, default 0.5,0.9"
    made.add_argument("--keep", default="0.5,0.9", metavar="LIST", help=text)
    text = "subsets for each share, default 24; 0: no LDS"
    made.add_argument("--subsets", type=int, default=24, metavar="N", help=text)
    text = "also leave one datum out of one step, N times (TSLOO); default 0"
    made.add_argument("--removals", type=int, default=0, metavar="N", help=text)
    text = "also remove and duplicate this share of the datums, named by each method; default 0"
    made.add_argument("--top", type=float, default=0.0, metavar="SHARE", help=text)
    text = "random sets of datums beside the named ones, default 5"
    made.add_argument("--controls", type=int, default=5, metavar="N", help=text)
    made.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    add_workers(made)
    add_ray(made)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.influence.judge.judge import (
        JudgeConfig,
        judge,
        judge_question,
        score_methods,
        write_judged,
    )
    from analysis.influence.queries.parsing import build_queries
    from cluster.options.machines import retraining_sweep
    from cluster.terminal.influence.lds import show_judged

    config = JudgeConfig(
        methods=tuple(arguments.methods.split(",")),
        keep=shares(arguments.keep),
        subsets=arguments.subsets,
        removals=arguments.removals,
        top=arguments.top,
        controls=arguments.controls,
        seed=arguments.seed,
    )

    @cache
    def queries(run: "Run") -> "list[Query]":
        return build_queries(run, arguments.queries)

    def question(run: "Run") -> "Question":
        return judge_question(queries(run), config)

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Judged":
        sweep = retraining_sweep(arguments, on, run.uri)
        with counting("scoring datums", "steps") as report:
            scores = score_methods(run, queries(run), config.methods, report)
        with counting("training again", "retrainings") as report:
            return judge(run, queries(run), scores, config, report, sweep)

    def show(console: "Console", run: "Run", found: "Judged") -> None:
        show_judged(console, found)

    return run_analysis(arguments, console, Analysis(question, compute, write_judged, show))


def shares(text: str) -> tuple[float, ...]:
    """Parse a list of shares; raise ``ConfigError`` for what is no number."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        problem = f"got {text!r}, must be numbers with commas between them"
        raise ConfigError("--keep", problem, "For example 0.5,0.9") from error
