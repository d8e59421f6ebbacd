"""``ontogeny trajectory``: metrics at the checkpoints of training."""

import argparse
from typing import TYPE_CHECKING

from capture.errors import at_least
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
    from analysis.trajectory.config import TrajectoryConfig
    from analysis.trajectory.tables import Trajectory
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Measures a model at the checkpoints of its training. Metrics:

  loss, accuracy, top5           on held-out text
  in_context, copying            loss late in a window minus early; on a repeated random block
  previous_token, duplicate_token, induction    attention of each head, on repeated random tokens
  q_composition, k_composition, v_composition   what a head reads of an earlier head's output
  path_patching*                 loss by one direct path between two components (--paths)
  syntactic_heads                dependencies along which heads look (--dependencies FILE.conllu)
  ngram_kl                       distance from the uni-, bi- and trigrams of the training text
  logit_lens, logit_lens_kl      predictions read after each layer
  head_ablation                  loss increase without each attention head
  neuron_ablation*               loss increase without single neurons of the MLPs
  token_interactions*            Shapley-Taylor interactions of two tokens of the context
  cka_before, cka_layers         similarity with the checkpoint before, and of layers
  weight_norm, weight_mean, weight_variance    of each unit
  update_norm, update_mean, update_variance, update_cosine    change since the checkpoint before
  gradient_size, gradient_mean, gradient_variance    of the mean gradient of training text
  gradient_norm, noise_scale     per-sample gradients of training text
  completion_loss, completion_accuracy, completion_top5    prompts of --concept FILE
  probe, probe_hypervolume       linear probes for labels of --concept FILE; over their complexity
  sum_waves, restricted_loss, excluded_loss, embedding_gini    of modular addition
  loss_components, logit_components    with --components: principal components over the checkpoints
  MODULE:FUNCTION                your own function of (model, text), which yields rows

Those with a * take long and are measured only if you name them. Most have a null to compare with.
Tables and a page with plots go to RUN/analysis/trajectory/.

  ontogeny trajectory runs/demo
  ontogeny trajectory runs/demo --name start --metrics loss ngram_kl --steps 0:50:5
  ontogeny trajectory runs/demo --name path --metrics loss --components 3 --checkpoints 40

With --components the text says where the path of losses, and of logits, turns more sharply than
the same steps in random order do.

Instead of a run, PLACE can be a folder of Hugging Face model folders (checkpoint-500, …), one with
config.json and a safetensors file for each checkpoint, or revisions on the hub: ID@step1,step1000.
Say with --to where the tables go, and with --text what to predict.

  ontogeny trajectory checkpoints/ --text held-out.txt --to results/

For a run of a training loop of yours, or of a trainer, give the model with --model. A causal
language model of Hugging Face gives all metrics, another model those of text and of weights."""


def add(commands: "Commands") -> None:
    made = add_command(commands, "trajectory", run, "Metrics at the checkpoints of training.", TEXT)
    add_place(made)
    text = "see above; default: all that the model can give"
    made.add_argument(
        "--metrics", nargs="+", action="extend", default=[], metavar="METRIC", help=text
    )
    add_checkpoints(made, default=12)
    text = "datums of it, default 200"
    made.add_argument("--datums", type=int, default=200, metavar="N", help=text)
    text = "seed of random tokens, default 0"
    made.add_argument("--seed", type=int, default=0, metavar="N", help=text)
    text = 'examples, one a line: {"prompt": …, "completion": …} or {"text": …, "label": …}'
    made.add_argument("--concept", metavar="FILE", help=text)
    text = "other examples in front of each prompt, default 0"
    made.add_argument("--shots", type=int, default=0, metavar="N", help=text)
    text = "sentences with their syntax, in the CoNLL-U format"
    made.add_argument("--dependencies", metavar="FILE", help=text)
    text = (
        "direct paths to patch, as in L0H1:L1H2, L0MLP:L1H0 or L1H2:logits; default all pairs of "
    )
    text += "heads, if there are few"
    made.add_argument("--paths", nargs="+", action="extend", default=[], metavar="A:B", help=text)
    text = "principal components of held-out losses and logits, with turning points; default none"
    made.add_argument("--components", type=int, default=0, metavar="K", help=text)
    add_texts(made)
    text = "components shown of each metric, default 1"
    made.add_argument("--rows", type=int, default=1, metavar="N", help=text)
    add_model(made)
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
        concept=arguments.concept,
        shots=arguments.shots,
        dependencies=arguments.dependencies,
        components=arguments.components,
        paths=tuple(arguments.paths),
    )
    if holds_checkpoints(arguments.run):
        return measure_checkpoints(arguments, console, config)
    refuse_texts(arguments)
    return run_analysis(arguments, console, of_run(config, rows=arguments.rows))


def measure_checkpoints(
    arguments: argparse.Namespace, console: "Console", config: "TrajectoryConfig"
) -> int:
    """Measure checkpoints that are no run, write the tables and print them."""
    from analysis.trajectory.stored import (
        checkpoints_question,
        trajectory_of_checkpoints,
        write_at,
    )
    from cluster.terminal.dynamics.trajectory import show_trajectory

    return answer_checkpoints(
        arguments,
        console,
        lambda texts: checkpoints_question(texts, config),
        lambda texts, report: trajectory_of_checkpoints(texts, config, report),
        write_at,
        lambda console, found: show_trajectory(console, found, rows=arguments.rows),
    )


def of_run(config: "TrajectoryConfig", *, rows: int) -> "Analysis[Trajectory]":
    """The trajectory of a run, of which ``rows`` components of each metric are printed."""
    from analysis.trajectory.observed.text import held_out_split
    from analysis.trajectory.trajectory import (
        require_asked,
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
        if held_out_split(run, config.split) == "train":
            text = "Predictions are of training text, not of held-out text."
            console.print(f"\n{text}", markup=False, highlight=False, soft_wrap=True)

    def check(run: "Run") -> None:
        require_asked(run, config)

    return Analysis(question, compute, write_trajectory, show, check)
