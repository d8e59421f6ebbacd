"""``ontogeny ablate``: does ablating a neuron agree with the tokens that moved it?"""

import argparse
from typing import TYPE_CHECKING

from capture.errors import at_least
from cluster.options.analysis import Analysis, add_model, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run
from cluster.options.choices import ABLATION_LEVELS, ABLATION_SPLITS, ABLATION_VALUES
from cluster.options.lifetime import explain_lifetime
from cluster.options.model_steps import add_model_steps, at_each_step

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.ablation.config import AblationConfig
    from analysis.ablation.tables import Ablation
    from cluster.options.arguments import Commands

TEXT = """\
Ablates columns (neurons) or rows of weights, or attention heads, one at a time, and compares the
model before and after: which next-token predictions flip, and how far the log-probability of each
true next token falls. By default it ablates the neurons that attribution named, each on the datums
that moved it most. Run ontogeny attribute first. Tables go to RUN/analysis/ablate/.

  ontogeny ablate runs/demo --name two --only layers.2.linear2.weight:17,80
  ontogeny ablate runs/demo --name heads --level head --all --value mean --split validation
  ontogeny ablate runs/demo --name early --level head --all --steps 0,20:101:40"""


def add(commands: "Commands") -> None:
    made = add_command(commands, "ablate", run, "Ablate neurons; compare predictions.", TEXT)
    add_run(made)
    add_subjects(made)
    made.add_argument(
        "--value",
        choices=ABLATION_VALUES,
        default="zero",
        help="replacement: zero weights (default), the mean over the training text, or the value "
        "at a random other position",
    )
    made.add_argument(
        "--split",
        choices=ABLATION_SPLITS,
        default="train",
        help="text to predict, default train (the datums that attribution kept)",
    )
    text = "name of the attribution to use, default the one without a name"
    made.add_argument("--attribution", default="", metavar="NAME", help=text)
    text = "datums for each neuron, default 2000"
    made.add_argument("--datums", type=int, default=2000, metavar="N", help=text)
    made.add_argument(
        "--scored-datums",
        type=int,
        default=200,
        metavar="N",
        help="how many of these to compute log-probabilities on; default 200, 0 for none",
    )
    text = "seed of random samples, default 0"
    made.add_argument("--seed", type=int, default=0, metavar="N", help=text)
    made.add_argument("--rows", type=int, default=10, metavar="N", help="rows shown, default 10")
    add_model_steps(made)
    add_model(made)
    add_ray(made)
    explain_lifetime(made)
    add_tables(made)
    add_quiet(made, json=True)


def add_subjects(made: argparse.ArgumentParser) -> None:
    """Options that choose what is ablated."""
    made.add_argument(
        "--level",
        choices=ABLATION_LEVELS,
        default="neuron",
        help="columns (neuron, default), rows or heads",
    )
    text = "the N with the most evidence in attribution, default 50"
    made.add_argument("--neurons", type=int, default=50, metavar="N", help=text)
    made.add_argument(
        "--only",
        "--neuron",
        nargs="+",
        action="extend",
        default=[],
        metavar="UNIT:N[,N…]",
        help="ablate these instead; for heads, layers.0.self_attn:2",
    )
    text = "ablate every head, or every column or row of MLP weights"
    made.add_argument("--all", action="store_true", help=text)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    return at_each_step(arguments, lambda own: run_once(own, console))


def run_once(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.ablation.config import AblationConfig

    at_least("--rows", arguments.rows, 1)
    config = AblationConfig(
        level=arguments.level,
        value=arguments.value,
        only=tuple(arguments.only),
        everything=arguments.all,
        max_neurons=arguments.neurons,
        max_datums=arguments.datums,
        scored_datums=arguments.scored_datums,
        split=arguments.split,
        seed=arguments.seed,
        step=arguments.step,
        attribution=arguments.attribution,
    )
    return run_analysis(arguments, console, ablation(config, rows=arguments.rows))


def ablation(config: "AblationConfig", *, rows: int) -> "Analysis[Ablation]":
    """The ablation of a configuration, of which ``rows`` rows are printed."""
    from analysis.ablation.ablate import ablate, write_ablation
    from analysis.ablation.config import require_asked
    from analysis.ablation.subjects import NOUNS
    from analysis.ablation.tables import Ablation
    from analysis.jobs.question import Question
    from analysis.jobs.tables import read_question, table_set
    from analysis.run.run import Run
    from cluster.options.analysis import Counting
    from cluster.options.machines import Machines
    from cluster.terminal.ablation_tables import show_ablation

    def compute(run: Run, on: Machines, counting: Counting) -> Ablation:
        with counting(f"ablating {NOUNS[config.level]}", "datums") as report:
            return ablate(run, config, report, on.sweep)

    def show(console: "Console", run: Run, found: Ablation) -> None:
        show_ablation(console, found, rows=rows)
        job = table_set("attribute", config.attribution)
        steps = read_question(run, job).steps
        console.print(f"Attribution: analysis/{job}, {steps:,} steps", markup=False)

    question = Question.of("ablate", config)

    def check(run: Run) -> None:
        require_asked(run, config)

    return Analysis(lambda run: question, compute, write_ablation, show, check)
