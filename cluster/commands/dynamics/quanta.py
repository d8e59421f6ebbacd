"""``ontogeny quanta``: groups of predictions that were learned together, and when."""

import argparse
from typing import TYPE_CHECKING

from cluster.commands.dynamics.places import (
    add_checkpoints,
    add_place,
    add_texts,
    answer_checkpoints,
    holds_checkpoints,
    refuse_texts,
)
from cluster.options.analysis import Analysis, Counting, add_model, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.jobs.question import Question
    from analysis.run.run import Run
    from analysis.transitions.quanta.config import QuantaConfig
    from analysis.transitions.quanta.tables import Quanta
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Groups positions of held-out text by the cosine of the gradients of their losses (quanta, Michaud et
al. 2023), and by the shape of their loss curves over training. For each group: its own loss curve,
change points, and whether it fell suddenly; for all, which share of the fall of the loss is
sudden. Beside it stand shuffled gradients and shuffled curves. Tables and a page with plots go to
PLACE/analysis/quanta/.

  ontogeny quanta runs/demo
  ontogeny quanta runs/demo --name fine --clusters 20 --positions 1000 --steps 0:8,8:64:4,64:560:16
  ontogeny quanta checkpoints/ --text held-out.txt --to results/

8 or more checkpoints are needed, 30 are better. A run that has fewer is replayed, as it is for
steps without a checkpoint in --steps."""


def add(commands: "Commands") -> None:
    summary = "Which predictions were learned together, and when?"
    made = add_command(commands, "quanta", run, summary, TEXT)
    add_place(made)
    text = "clusters of positions, default 10"
    made.add_argument("--clusters", type=int, default=10, metavar="N", help=text)
    text = "positions of the text, drawn at random, default 400"
    made.add_argument("--positions", type=int, default=400, metavar="N", help=text)
    text = "parameters whose gradients are compared; default the matrices of the layers; may be "
    text += "repeated"
    made.add_argument("--units", action="append", default=[], metavar="PATTERN", help=text)
    add_checkpoints(made, default=30)
    text = "draws of shuffled gradients and curves, default 20"
    made.add_argument("--draws", type=int, default=20, metavar="N", help=text)
    text = "seed of positions, clusters and shuffles, default 0"
    made.add_argument("--seed", type=int, default=0, metavar="N", help=text)
    add_texts(made)
    add_model(made)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.transitions.quanta.config import QuantaConfig

    config = QuantaConfig(
        clusters=arguments.clusters,
        positions=arguments.positions,
        units=tuple(arguments.units),
        steps=arguments.steps,
        checkpoints=arguments.checkpoints,
        split=arguments.split,
        draws=arguments.draws,
        seed=arguments.seed,
    )
    if holds_checkpoints(arguments.run):
        return ask_checkpoints(arguments, console, config)
    refuse_texts(arguments)
    return run_analysis(arguments, console, of_run(config))


def ask_checkpoints(
    arguments: argparse.Namespace, console: "Console", config: "QuantaConfig"
) -> int:
    """Find the quanta of checkpoints that are no run, write the tables and print them."""
    from analysis.transitions.quanta.places import (
        quanta_of_checkpoints,
        quanta_question,
        write_at,
    )
    from cluster.terminal.dynamics.quanta import show_quanta

    return answer_checkpoints(
        arguments,
        console,
        lambda texts: quanta_question(config, texts),
        lambda texts, report: quanta_of_checkpoints(texts, config, report),
        write_at,
        show_quanta,
    )


def of_run(config: "QuantaConfig") -> "Analysis[Quanta]":
    """The quanta of a run."""
    from analysis.transitions.quanta.places import quanta_of_run, quanta_question, write_quanta
    from cluster.terminal.dynamics.quanta import show_quanta

    def question(run: "Run") -> "Question":
        return quanta_question(config)

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Quanta":
        with counting("measuring", "checkpoints") as report:
            return quanta_of_run(run, config, report)

    def show(console: "Console", run: "Run", found: "Quanta") -> None:
        show_quanta(console, found)

    return Analysis(question, compute, write_quanta, show)
