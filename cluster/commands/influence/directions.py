"""``ontogeny directions``: influence along directions of a weight's inputs or outputs."""

import argparse
from functools import cache
from typing import TYPE_CHECKING

from capture.errors import at_least
from cluster.options.analysis import Analysis, Counting, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet, add_run

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.influence.directions.tables import Directions
    from analysis.influence.queries.query import Query
    from analysis.jobs.question import Question
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Shares the influence of the training datums on queries, through one weight, among directions of its
inputs or outputs: neurons, principal components of the activations, a sparse dictionary of them, or
your own. Parts of an orthonormal basis sum to the influence through the weight. Random directions
are the null. The run is replayed once. Tables go to RUN/analysis/directions/.

  ontogeny directions runs/demo layers.1.linear2.weight loss --basis pca
  ontogeny directions runs/demo layers.1.linear2.weight token:the --method unrolled --name the"""


def add(commands: "Commands") -> None:
    summary = "Share influence among directions of a weight."
    made = add_command(commands, "directions", run, summary, TEXT)
    add_run(made)
    made.add_argument("unit", metavar="UNIT", help="a captured weight of a linear module")
    made.add_argument("queries", nargs="+", metavar="QUERY", help="as in ontogeny influence")
    text = "neurons (each input or output, default), pca, dictionary, or a .npy file of directions"
    made.add_argument("--basis", default="neurons", metavar="BASIS", help=text)
    text = "inputs (columns of the weight, default) or outputs (rows)"
    made.add_argument("--side", default="inputs", metavar="SIDE", help=text)
    text = "path (what the datums did, default) or unrolled (what would be without them)"
    made.add_argument("--method", default="path", metavar="METHOD", help=text)
    text = "random directions of the null, default 99"
    made.add_argument("--random", type=int, default=99, metavar="N", help=text)
    text = "datums kept of each direction, default 10"
    made.add_argument("--datums", type=int, default=10, metavar="N", help=text)
    text = "with --method unrolled: retrainings without a random tenth of the datums that check "
    text += "it, default 2"
    made.add_argument("--checks", type=int, default=2, metavar="N", help=text)
    text = "seed of the random directions and of the dictionary, default 0"
    made.add_argument("--seed", type=int, default=0, metavar="N", help=text)
    made.add_argument("--rows", type=int, default=10, metavar="N", help="rows shown, default 10")
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.influence.directions.along import (
        DirectionsConfig,
        influence_along,
        require_asked,
    )
    from analysis.influence.directions.tables import (
        directions_question,
        tabulate,
        write_directions,
    )
    from analysis.influence.queries.parsing import build_queries
    from cluster.terminal.influence.directions import show_directions

    at_least("--rows", arguments.rows, 1)
    config = DirectionsConfig(
        unit=arguments.unit,
        basis=arguments.basis,
        side=arguments.side,
        method=arguments.method,
        random=arguments.random,
        datums=arguments.datums,
        checks=arguments.checks,
        seed=arguments.seed,
    )

    @cache
    def queries(run: "Run") -> "list[Query]":
        return build_queries(run, arguments.queries)

    def question(run: "Run") -> "Question":
        return directions_question(queries(run), config)

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Directions":
        with counting("replaying", "steps") as report:
            found = influence_along(run, queries(run), config, report)
        return tabulate(found, queries(run), config)

    def show(console: "Console", run: "Run", found: "Directions") -> None:
        show_directions(console, run, found, config, rows=arguments.rows)

    def check(run: "Run") -> None:
        require_asked(run, config)

    answer = Analysis(question, compute, write_directions, show, check)
    return run_analysis(arguments, console, answer)
