"""``ontogeny activations``: the baseline that needs no record."""

import argparse
from typing import TYPE_CHECKING

from capture.errors import at_least
from cluster.options.analysis import Analysis, Counting, add_model, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run
from cluster.options.choices import ACTIVATION_QUANTITIES as QUANTITIES
from cluster.options.lifetime import explain_lifetime
from cluster.options.model_steps import add_model_steps, at_each_step

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.activations.tables import Activations
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
The baseline: how active every neuron is at the positions of some tokens, over all training datums
and without dropout. Shows the neurons with the least and the greatest mean activation on a token,
and compares one neuron with others. By default the tokens and the neuron are the ones with the most
evidence in ontogeny attribute, if it was run. The positions of a token are those that predict it
(or, with --by input, those that read it). Tables go to RUN/analysis/activations/.

  of   inputs              what a neuron is given: the inputs of each weight of an MLP (default);
                           the least and greatest are those of the last weights of MLPs, because
                           inputs of other weights have another scale
       outputs             rows: the outputs of these weights, before any nonlinearity
       head-entries        the mixed values that enter the output projection, entry by entry
       head-norm           norm of what a head adds to the residual stream
       attention-entropy, attention-largest, attention-self, attention-previous,
       attention-distance  of a head's attention weights: entropy in nats, the largest, that of the
                           position itself, that of the position before, mean distance"""


def add(commands: "Commands") -> None:
    made = add_command(commands, "activations", run, "What activations alone show.", TEXT)
    add_run(made)
    made.add_argument("--tokens", metavar="A,B,…", help="as in war,season; default: see above")
    text = "the neuron (row, head) to compare, as in layers.2.linear2.weight:96"
    made.add_argument("--neuron", metavar="UNIT:N", help=text)
    text = "what is measured, see above; default inputs"
    made.add_argument("--of", choices=QUANTITIES, default="inputs", metavar="OF", help=text)
    made.add_argument("--by", choices=("target", "input"), default="target", help="default target")
    text = "name of the attribution to take them from, default the one without a name"
    made.add_argument("--attribution", default="", metavar="NAME", help=text)
    made.add_argument("--rows", type=int, default=3, metavar="N", help="tokens shown, default 3")
    add_model_steps(made)
    add_model(made)
    add_ray(made)
    explain_lifetime(made)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    return at_each_step(arguments, lambda own: run_once(own, console))


def run_once(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.activations.config import ActivationConfig, require_asked
    from analysis.activations.tables import activations, write_activations
    from analysis.jobs.question import Question
    from cluster.terminal.activation_tables import show_activations

    at_least("--rows", arguments.rows, 1)
    config = ActivationConfig(
        tokens=tuple(arguments.tokens.split(",")) if arguments.tokens is not None else (),
        neuron=arguments.neuron,
        quantity=arguments.of,
        by=arguments.by,
        step=arguments.step,
        attribution=arguments.attribution,
    )

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Activations":
        with counting("measuring activations", "datums") as report:
            return activations(run, config, report, on.sweep)

    def show(console: "Console", run: "Run", found: "Activations") -> None:
        show_activations(console, found, rows=arguments.rows)

    question = Question.of("activations", config)

    def check(run: "Run") -> None:
        require_asked(run, config)

    found = Analysis(lambda run: question, compute, write_activations, show, check)
    return run_analysis(arguments, console, found)
