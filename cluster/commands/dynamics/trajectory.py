"""``ontogeny trajectory``: metrics at the checkpoints of training."""

import argparse
from typing import TYPE_CHECKING

from capture.errors import at_least
from cluster.options.analysis import Analysis, Counting, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet
from cluster.options.choices import ABLATION_SPLITS

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.jobs.question import Question
    from analysis.run.run import Run
    from analysis.trajectory.config import TrajectoryConfig
    from analysis.trajectory.tables import Trajectory
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Measures a model at the checkpoints of its training. Metrics:

  loss, accuracy, top5           on held-out text
  in_context, copying            loss late in a window minus early; on a repeated random block
  previous_token, duplicate_token, induction    attention of each head, on repeated random tokens
  ngram_kl                       distance from the uni-, bi- and trigrams of the training text
  logit_lens, logit_lens_kl      predictions read after each layer
  head_ablation                  loss increase without each attention head
  cka_before, cka_layers         similarity with the checkpoint before, and of layers
  weight_norm, weight_mean, weight_variance, update_norm, update_cosine    by unit
  gradient_norm, noise_scale     per-sample gradients of training text
  MODULE:FUNCTION                your own function of (model, text), which yields rows

Each has a null to compare with. Tables and a page with plots go to RUN/analysis/trajectory/.

  ontogeny trajectory runs/demo
  ontogeny trajectory runs/demo --name start --metrics loss ngram_kl --steps 0:50:5"""


def add(commands: "Commands") -> None:
    made = add_command(commands, "trajectory", run, "Metrics at the checkpoints of training.", TEXT)
    made.add_argument("run", metavar="RUN", help="folder or prefix of a run, as in runs/demo")
    text = "see above; default: all that the model can give"
    made.add_argument(
        "--metrics", nargs="+", action="extend", default=[], metavar="METRIC", help=text
    )
    text = (
        "log (default): checkpoints of the run, log-spaced; all; or a list such as 0,10,20:100:5 "
    )
    text += "(from 20 to below 100 by 5). Steps without a checkpoint are replayed"
    made.add_argument("--steps", default="log", metavar="STEPS", help=text)
    text = "checkpoints of --steps log, default 12"
    made.add_argument("--checkpoints", type=int, default=12, metavar="N", help=text)
    text = "text to predict; default validation, else test, else train"
    made.add_argument("--split", choices=ABLATION_SPLITS, default="", help=text)
    text = "datums of it, default 200"
    made.add_argument("--datums", type=int, default=200, metavar="N", help=text)
    text = "seed of random tokens, default 0"
    made.add_argument("--seed", type=int, default=0, metavar="N", help=text)
    text = "components shown of each metric, default 3"
    made.add_argument("--rows", type=int, default=3, metavar="N", help=text)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.trajectory.config import TrajectoryConfig

    at_least("--rows", arguments.rows, 1)
    config = TrajectoryConfig(
        metrics=tuple(arguments.metrics),
        steps=arguments.steps,
        checkpoints=arguments.checkpoints,
        split=arguments.split,
        datums=arguments.datums,
        seed=arguments.seed,
    )
    return run_analysis(arguments, console, of_run(config, rows=arguments.rows))


def of_run(config: "TrajectoryConfig", *, rows: int) -> "Analysis[Trajectory]":
    """The trajectory of a run, of which ``rows`` components of each metric are printed."""
    from analysis.trajectory.trajectory import (
        trajectory_of_run,
        trajectory_question,
        write_trajectory,
    )
    from cluster.terminal.dynamics.trajectory import show_trajectory

    def question(run: "Run") -> "Question":
        return trajectory_question(config)

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Trajectory":
        with counting("measuring", "checkpoints") as report:
            return trajectory_of_run(run, config, report)

    def show(console: "Console", run: "Run", found: "Trajectory") -> None:
        show_trajectory(console, found, rows=rows)

    return Analysis(question, compute, write_trajectory, show)
