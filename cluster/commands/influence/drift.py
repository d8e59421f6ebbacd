"""``ontogeny drift``: do shifts along a neuron or a direction agree more than a random walk?"""

import argparse
from typing import TYPE_CHECKING

from capture.errors import at_least
from cluster.options.analysis import Analysis, Counting, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet, add_run

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.influence.drift.along import Drift
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Adds up the shifts of all datums in all steps along directions of a weight's inputs or outputs, or
for each single entry of it, and compares how far they went with random walks of the same shifts
(random signs). drift = |sum of shifts| / root of the sum of their squares: about 1 for noise, the
root of their number if all agree. The null is a random walk, so it tests whether shifts agree, not
whether the model learned. p is 1 / (walks + 1) at least; q adjusts it for all directions. The run
is replayed once. Tables go to RUN/analysis/drift/.

  ontogeny drift runs/demo layers.1.linear2.weight
  ontogeny drift runs/demo layers.1.linear2.weight --name pca --basis pca"""


def add(commands: "Commands") -> None:
    made = add_command(commands, "drift", run, "Do shifts agree more than a random walk?", TEXT)
    add_run(made)
    made.add_argument("unit", metavar="UNIT", help="a captured weight with two axes")
    text = "neurons (each input or output, default), pca, dictionary, weights (each by itself), or "
    text += "a .npy file of directions"
    made.add_argument("--basis", default="neurons", metavar="BASIS", help=text)
    text = "inputs (columns of the weight, default) or outputs (rows)"
    made.add_argument("--side", default="inputs", metavar="SIDE", help=text)
    text = "random walks of the null, default 99"
    made.add_argument("--walks", type=int, default=99, metavar="N", help=text)
    text = "seed of the random walks, default 0"
    made.add_argument("--seed", type=int, default=0, metavar="N", help=text)
    made.add_argument("--rows", type=int, default=10, metavar="N", help="rows shown, default 10")
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.influence.drift.along import (
        DriftConfig,
        measure_drift,
        require_asked,
        write_drift,
    )
    from analysis.jobs.question import Question
    from cluster.terminal.influence.drift import show_drift

    at_least("--rows", arguments.rows, 1)
    config = DriftConfig(
        unit=arguments.unit,
        basis=arguments.basis,
        side=arguments.side,
        walks=arguments.walks,
        seed=arguments.seed,
    )

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Drift":
        with counting("replaying", "steps") as report:
            return measure_drift(run, config, report)

    def show(console: "Console", run: "Run", found: "Drift") -> None:
        show_drift(console, found, config, rows=arguments.rows)

    question = Question.of("drift", config)

    def check(run: "Run") -> None:
        require_asked(run, config)

    answer = Analysis(lambda run: question, compute, write_drift, show, check)
    return run_analysis(arguments, console, answer)
