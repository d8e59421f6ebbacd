"""``ontogeny behaviour``: which units, heads and neurons the data behind a behaviour moved."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from capture.errors import ConfigError, at_least
from cluster.options.analysis import Analysis, Counting, add_model, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run, add_skip_damaged
from cluster.options.lifetime import add_lifetime, compute_lifetimes, say_lifetime

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.behaviour.behaviour import Behaviour
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

MEASURES = ("rows", "shift", "target")
TEXT = """\
You describe a behaviour by the training datums that show it. The command compares what these datums
moved with what control datums moved: datums without the behaviour that were seen as often and have
tokens as frequent and as varied. For each unit, attention head and neuron it reports the share of a
datum's outlier rows, the sum of |shift|, and, with --target, the share of rows at positions with
that target against the other positions of the same datums. With --confirm it silences what was
moved most, one head or neuron at a time, on held-out text: does the behaviour suffer more than the
rest of the text, and more than without heads and neurons that were not moved? Tables go to
RUN/analysis/behaviour/."""


def add(commands: "Commands") -> None:
    summary = "What the data behind a behaviour moved."
    made = add_command(commands, "behaviour", run, summary, TEXT)
    add_run(made)
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--contains", metavar="TOKEN", help="datums that contain a token")
    which.add_argument("--target", metavar="TOKEN", help="datums that have a token as target")
    which.add_argument("--regex", metavar="RE", help="datums whose text matches a pattern (RE2)")
    which.add_argument("--datums", metavar="IDS", help="id,id,… or a file of ids")
    text = "controls for each datum, default 5"
    made.add_argument("--controls", type=int, default=5, metavar="N", help=text)
    text = "datums compared, default 2000"
    made.add_argument("--most", type=int, default=2000, metavar="N", help=text)
    text = "seed of all random draws, default 0"
    made.add_argument("--seed", type=int, default=0, metavar="N", help=text)
    text = "what is shown, default rows"
    made.add_argument("--measure", choices=MEASURES, default="rows", help=text)
    made.add_argument("--rows", type=int, default=10, metavar="N", help="rows shown, default 10")
    text = "silence the heads and neurons that were moved most, and some others, on held-out text"
    made.add_argument("--confirm", action="store_true", help=text)
    add_model(made)
    add_lifetime(made)
    add_skip_damaged(made)
    add_ray(made)
    add_tables(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.behaviour.behaviour import BehaviourConfig, analyse_behaviour, write_behaviour
    from analysis.behaviour.predicates import Predicate, require_known
    from analysis.faithfulness.confirm import ConfirmConfig, Confirmed
    from analysis.faithfulness.confirm_behaviour import confirm_behaviour, require_confirmable
    from analysis.jobs.question import Question
    from cluster.terminal.behaviour_tables import show_behaviour

    at_least("--rows", arguments.rows, 1)
    predicate = Predicate(
        contains=arguments.contains,
        target=arguments.target,
        regex=arguments.regex,
        datums=None if arguments.datums is None else read_datums(arguments.datums),
    )
    if arguments.measure == "target" and arguments.target is None:
        raise ConfigError("--measure", "target is measured for --target TOKEN only")
    config = BehaviourConfig(
        controls=arguments.controls,
        max_datums=arguments.most,
        seed=arguments.seed,
        lifetime=arguments.lifetime,
    )
    confirmation = ConfirmConfig(seed=config.seed) if arguments.confirm else None

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Behaviour":
        compute_lifetimes(run, counting, wanted=config.lifetime)
        if confirmation:
            require_confirmable(run, predicate)
        with counting("reading outliers", "rows") as report:
            found = analyse_behaviour(run, partial(on.run_job, report=report), predicate, config)
        if confirmation is None:
            return found
        with counting("silencing", "datums") as report:
            return confirm_behaviour(run, found, predicate, confirmation, report, on.sweep)

    def show(console: "Console", run: "Run", found: "Behaviour") -> None:
        show_behaviour(console, found, measure=arguments.measure, rows=arguments.rows)
        say_lifetime(console, counted=config.lifetime)

    asked = (predicate, config, Confirmed(confirmation)) if confirmation else (predicate, config)
    question = Question.of("behaviour", *asked)

    def check(run: "Run") -> None:
        require_known(run, predicate)

    found = Analysis(lambda run: question, compute, write_behaviour, show, check)
    return run_analysis(arguments, console, found)


def read_datums(given: str) -> tuple[int, ...]:
    """Parse ids given on the command line, or in the file that is named there."""
    from analysis.behaviour.predicates import parse_datums

    path = Path(given)
    if not path.is_file():
        return parse_datums(given, "--datums")
    try:
        return parse_datums(path.read_text("utf-8"), given)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(given, "is not a text file", "Give a file of ids") from error
