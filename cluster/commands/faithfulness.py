"""``ontogeny faithfulness``: which attribution method to trust, and where."""

import argparse
from typing import TYPE_CHECKING

from cluster.options.analysis import Analysis, Counting, add_model, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run, add_skip_damaged
from cluster.options.lifetime import explain_lifetime
from cluster.options.model_steps import add_model_steps, at_each_step

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.faithfulness.faithfulness import Faithfulness
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Evaluates attribution methods against ablation. It ablates some neurons of every unit and measures
which tokens' log-probability changes most on held-out text: the ground truth. Each method then
ranks the same tokens: outlier rows by window, input and target token, tallies, and the baselines
that need no record (activations, token frequency, chance). AUC is how often an affected token ranks
above another one; 0.5 is chance. One half of the text also predicts the other half, which shows how
noisy the ground truth itself is. With --step, the model is the one after so many steps, and the
evidence is what was recorded until then. Tables go to RUN/analysis/faithfulness/."""


def add(commands: "Commands") -> None:
    summary = "Evaluate attribution methods against ablation."
    made = add_command(commands, "faithfulness", run, summary, TEXT)
    add_run(made)
    text = "neurons of each unit, default 16"
    made.add_argument("--neurons", type=int, default=16, metavar="N", help=text)
    made.add_argument("--text", default="held-out", metavar="TEXT", help="held-out or train")
    text = "datums of the text, default 2000"
    made.add_argument("--datums", type=int, default=2000, metavar="N", help=text)
    text = "positions that a token needs, default 10"
    made.add_argument("--min-count", type=int, default=10, metavar="N", help=text)
    made.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    add_skip_damaged(made)
    add_model_steps(made)
    add_model(made)
    add_ray(made)
    explain_lifetime(made)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    return at_each_step(arguments, lambda own: run_once(own, console))


def run_once(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.faithfulness.faithfulness import faithfulness, write_faithfulness
    from analysis.faithfulness.ground_truth import FaithfulnessConfig
    from analysis.jobs.question import Question
    from cluster.terminal.faithfulness_tables import show_faithfulness

    config = FaithfulnessConfig(
        neurons=arguments.neurons,
        text=arguments.text,
        max_datums=arguments.datums,
        min_count=arguments.min_count,
        step=arguments.step,
        seed=arguments.seed,
    )

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Faithfulness":
        with counting("ablating neurons", "datums") as report:
            return faithfulness(run, on.run_job, config, report, on.sweep)

    def show(console: "Console", run: "Run", found: "Faithfulness") -> None:
        show_faithfulness(console, found, config)

    question = Question.of("faithfulness", config)
    found = Analysis(lambda run: question, compute, write_faithfulness, show)
    return run_analysis(arguments, console, found)
