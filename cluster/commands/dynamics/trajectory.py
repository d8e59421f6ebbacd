"""``ontogeny trajectory``: metrics at the checkpoints of training."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from capture.errors import ConfigError, at_least
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
  completion_loss, completion_accuracy, completion_top5, probe    on examples of --concept FILE
  sum_waves, restricted_loss, excluded_loss, embedding_gini    of modular addition
  MODULE:FUNCTION                your own function of (model, text), which yields rows

Each has a null to compare with. Tables and a page with plots go to RUN/analysis/trajectory/.

  ontogeny trajectory runs/demo
  ontogeny trajectory runs/demo --name start --metrics loss ngram_kl --steps 0:50:5

Instead of a run, PLACE can be a folder of Hugging Face model folders (checkpoint-500, …), one with
config.json and a safetensors file for each checkpoint, or revisions on the hub: ID@step1,step1000.
Say with --to where the tables go, and with --text what to predict.

  ontogeny trajectory checkpoints/ --text held-out.txt --to results/"""


def add(commands: "Commands") -> None:
    made = add_command(commands, "trajectory", run, "Metrics at the checkpoints of training.", TEXT)
    text = "folder or prefix of a run, as in runs/demo; or a folder of checkpoints"
    made.add_argument("run", metavar="PLACE", help=text)
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
    text = 'examples, one a line: {"prompt": …, "completion": …} or {"text": …, "label": …}'
    made.add_argument("--concept", metavar="FILE", help=text)
    text = "other examples in front of each prompt, default 0"
    made.add_argument("--shots", type=int, default=0, metavar="N", help=text)
    add_texts(made)
    text = "components shown of each metric, default 3"
    made.add_argument("--rows", type=int, default=3, metavar="N", help=text)
    add_tables(made)
    add_quiet(made, json=True)


def add_texts(made: argparse.ArgumentParser) -> None:
    """Options for checkpoints that are no run."""
    text = "without a run: UTF-8 text to predict; without it, metrics of text are left out"
    made.add_argument("--text", metavar="FILE", help=text)
    text = "without a run: text that the model was trained on"
    made.add_argument("--training-text", metavar="FILE", help=text)
    text = "without a run: tokens of a window; default what the model takes, at most 128"
    made.add_argument("--window", type=int, metavar="N", help=text)


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
        concept=arguments.concept,
        shots=arguments.shots,
    )
    if holds_checkpoints(arguments.run):
        return measure_checkpoints(arguments, console, config)
    for option in ("text", "training_text", "window"):
        if vars(arguments)[option] is not None:
            problem = f"is given, but {arguments.run} is a run, which has its text"
            raise ConfigError(f"--{option.replace('_', '-')}", problem, "Leave it out")
    return run_analysis(arguments, console, of_run(config, rows=arguments.rows))


def holds_checkpoints(place: str) -> bool:
    """Whether a place is a folder that is no run, or names revisions on the hub."""
    from capture.format.markers import START
    from capture.store import Store

    folder = Path(place).expanduser()
    if folder.is_dir():
        return not Store(str(folder)).exists(START)
    return "@" in place and "://" not in place


def measure_checkpoints(
    arguments: argparse.Namespace, console: "Console", config: "TrajectoryConfig"
) -> int:
    """Measure checkpoints that are no run, write the tables and print them."""
    from analysis.jobs.loose_tables import claim_place
    from analysis.jobs.tables import table_set
    from analysis.trajectory.observed.files import FileTexts
    from analysis.trajectory.stored import (
        checkpoints_question,
        trajectory_of_checkpoints,
        write_at,
    )
    from capture.store import Store
    from cluster.on_ray.job import require_persistent
    from cluster.terminal.as_json import print_as_json
    from cluster.terminal.dynamics.trajectory import show_trajectory
    from cluster.terminal.progress import counting

    if arguments.split:
        raise ConfigError("--split", f"is given, but {arguments.run} is no run", "Give --text")
    if not arguments.to:
        problem = f"is missing, and {arguments.run} is no run that could hold the tables"
        raise ConfigError("--to", problem, "Say where they go: --to FOLDER")
    require_persistent("--to", arguments.to)
    texts = FileTexts(
        place=arguments.run,
        text=arguments.text,
        training_text=arguments.training_text,
        window=arguments.window,
    )
    store, question = Store(arguments.to), checkpoints_question(texts, config)
    claim_place(store, question, arguments.name, replace=arguments.replace)
    quiet = arguments.quiet or arguments.json
    with counting(console, "measuring", "checkpoints", quiet=quiet) as report:
        found = trajectory_of_checkpoints(texts, config, report)
    write_at(store, found, question, arguments.run, arguments.name)
    if arguments.json:
        print_as_json(found)
    if not quiet:
        show_trajectory(console, found, rows=arguments.rows)
        place = f"{store.uri}/analysis/{table_set(question.command, arguments.name)}/"
        console.print(f"Tables: {place}", markup=False, highlight=False, soft_wrap=True)
    return 0


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
