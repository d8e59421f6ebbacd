"""``ontogeny bigrams``: which bigram logits training shifted, and which datums shifted them."""

import argparse
from typing import TYPE_CHECKING

from cluster.options.analysis import Analysis, Counting, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet, add_run
from cluster.options.lifetime import explain_lifetime
from cluster.options.ranges import parse_steps

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.bigrams.bigrams import BigramTables
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
A bigram's logit is what the unembedding alone gives to token v after the embedding of token w. The
command finds the largest of all V × V logit shifts exactly, over a range of steps or in every
step, and says how much of each came from which datum. It replays steps from checkpoints, so any run
will do; over a range, --datums 0 needs only the two ends. Tables go to RUN/analysis/bigrams/.

  ontogeny bigrams runs/demo --token python
  ontogeny bigrams runs/demo --name late --steps 200:300 --each-step --top 5"""


def add(commands: "Commands") -> None:
    summary = "Which bigrams shifted, and which data shifted them."
    made = add_command(commands, "bigrams", run, summary, TEXT)
    add_run(made)
    text = "steps A to B - 1, or one step; default all"
    made.add_argument("--steps", metavar="A:B", default=":", help=text)
    made.add_argument("--token", metavar="TOKEN", help="only bigrams with this token on one side")
    text = "the largest shifts of every single step"
    made.add_argument("--each-step", action="store_true", help=text)
    text = "bigrams (of each step), default 20"
    made.add_argument("--top", type=int, default=20, metavar="N", help=text)
    text = "datums for each bigram, default 5, 0 for none"
    made.add_argument("--datums", type=int, default=5, metavar="N", help=text)
    explain_lifetime(made)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.bigrams.bigrams import BigramConfig, find_bigrams, require_token, write_bigrams
    from analysis.jobs.question import Question
    from cluster.terminal.bigram_tables import show_bigrams

    first_step, end_step = parse_steps(arguments.steps)
    config = BigramConfig(
        first_step=first_step,
        end_step=end_step,
        each_step=arguments.each_step,
        token=arguments.token,
        top=arguments.top,
        datums=arguments.datums,
    )

    def compute(run: "Run", on: "Machines", counting: Counting) -> "BigramTables":
        with counting("replaying steps", "steps") as report:
            return find_bigrams(run, config, report)

    def show(console: "Console", run: "Run", found: "BigramTables") -> None:
        show_bigrams(console, run, found, rows=config.top)

    question = Question.of("bigrams", config)

    def check(run: "Run") -> None:
        require_token(run, config)

    found = Analysis(lambda run: question, compute, write_bigrams, show, check)
    return run_analysis(arguments, console, found)
