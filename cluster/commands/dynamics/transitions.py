"""``ontogeny transitions``: when does each metric change, and is it sudden?"""

import argparse
from typing import TYPE_CHECKING

from cluster.options.analysis import Analysis, Counting, add_tables, run_analysis
from cluster.options.arguments import add_any_number, add_command, add_quiet, add_ray
from cluster.options.lifetime import explain_lifetime

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.run.run import Run
    from analysis.transitions.config import TransitionsConfig
    from analysis.transitions.tables import Transitions
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Tests every curve of a run: loss and gradient norm of each step, evaluations, and the metrics of
ontogeny trajectory, if it was run. For each it finds change points, the step of half the change,
and whether the change is sudden: half of it or more while the step doubles, beyond 95 % of smooth
curves with the same noise and of random walks. Then it compares curves: which change
first, which change where the loss does, which lead the target. A hidden Markov model gives states
of training, and the record names datums and neurons that moved more inside the transition; so do
the tables of ontogeny spectrum with directions.

Several runs are samples of the same training, as with other seeds: order, leads and states are
those of all of them. RUN may also be a place to which ontogeny trajectory wrote (--to). Tables go
to RUN/analysis/transitions/ of the first run.

  ontogeny transitions runs/demo
  ontogeny transitions runs/demo --name loss --metrics "training loss" "validation loss" """


def add(commands: "Commands") -> None:
    summary = "When does each metric change, and is it sudden?"
    made = add_command(commands, "transitions", run, summary, TEXT)
    made.add_argument("run", metavar="RUN", help="folder or prefix of a run, as in runs/demo")
    text = "further runs of the same training, with other seeds"
    add_any_number(made, "others", metavar="RUN", help=text)
    text = "only these curves; default all, but norms, means and variances of single units"
    made.add_argument("--metrics", nargs="+", action="extend", default=[], metavar="M", help=text)
    text = "name of the tables of ontogeny trajectory, default those without a name"
    made.add_argument("--trajectory", default="", metavar="NAME", help=text)
    text = "curve that others may lead; default accuracy, else a loss on held-out text"
    made.add_argument("--target", default="", metavar="METRIC", help=text)
    text = "curve whose transition the record is asked about; default the target"
    made.add_argument("--around", default="", metavar="METRIC[:COMPONENT]", help=text)
    text = "null curves of each kind, and draws of each bootstrap; default 199"
    made.add_argument("--draws", type=int, default=199, metavar="N", help=text)
    text = "most hidden states to try, default 8; 0: no hidden Markov model"
    made.add_argument("--states", type=int, default=8, metavar="N", help=text)
    made.add_argument("--no-record", action="store_true", help="do not ask which data moved then")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of draws, default 0")
    add_ray(made)
    explain_lifetime(made)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.run.run import open_run
    from analysis.transitions.config import TransitionsConfig
    from analysis.transitions.sources import frame_of
    from analysis.transitions.stored import holds_trajectory
    from analysis.transitions.transitions import (
        find_transitions,
        require_asked,
        transitions_question,
        write_transitions,
    )
    from capture.store import Store
    from cluster.terminal.dynamics.transitions import show_transitions

    config = TransitionsConfig(
        metrics=tuple(arguments.metrics),
        trajectory=arguments.trajectory,
        target=arguments.target,
        around=arguments.around,
        draws=arguments.draws,
        states=arguments.states,
        record=not arguments.no_record,
        seed=arguments.seed,
    )
    if holds_trajectory(Store(arguments.run), config.trajectory):
        return answer_places(arguments, console, config)
    others = [open_run(uri) for uri in arguments.others]

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Transitions":
        with counting("testing", "curves") as report:
            return find_transitions([run, *others], config, on.run_job, report)

    def show(console: "Console", run: "Run", found: "Transitions") -> None:
        show_transitions(console, found)

    def check(run: "Run") -> None:
        runs = [run, *others]
        require_asked({each.uri: frame_of(each, config.trajectory) for each in runs}, config)

    uris = [other.uri for other in others]
    answer = Analysis(
        lambda run: transitions_question(config, [run.uri, *uris]),
        compute,
        write_transitions,
        show,
        check,
    )
    return run_analysis(arguments, console, answer)


def answer_places(
    arguments: argparse.Namespace, console: "Console", config: "TransitionsConfig"
) -> int:
    """Test the trajectories at places that are no runs, write the tables and print them."""
    from analysis.jobs.loose_tables import claim_place
    from analysis.jobs.tables import table_set
    from analysis.transitions.stored import transitions_of_places, write_at
    from analysis.transitions.transitions import transitions_question
    from capture.store import Store
    from cluster.terminal.as_json import print_as_json
    from cluster.terminal.dynamics.transitions import show_transitions
    from cluster.terminal.progress import counting

    stores = [Store(place) for place in (arguments.run, *arguments.others)]
    question = transitions_question(config, [store.uri for store in stores])
    written = Store(arguments.to) if arguments.to else stores[0]
    claim_place(written, question, arguments.name, replace=arguments.replace)
    quiet = arguments.quiet or arguments.json
    with counting(console, "testing", "curves", quiet=quiet) as report:
        found = transitions_of_places(stores, config, report)
    write_at(written, found, question, arguments.name)
    if arguments.json:
        print_as_json(found)
    elif not quiet:
        show_transitions(console, found)
        place = f"{written.uri}/analysis/{table_set(question.command, arguments.name)}/"
        console.print(f"Tables: {place}", markup=False, highlight=False, soft_wrap=True)
    return 0
