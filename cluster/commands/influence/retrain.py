"""``ontogeny retrain``: what would the model be without these data?"""

import argparse
from typing import TYPE_CHECKING

from capture.errors import ConfigError
from cluster.options.arguments import (
    add_any_number,
    add_command,
    add_quiet,
    add_ray,
    add_run,
    add_workers,
)
from cluster.options.ranges import parse_numbers, parse_steps

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.influence.counterfactuals import Request
    from analysis.run.run import Run
    from cluster.options.arguments import Commands

TEXT = """\
Trains the run again without some datums, with some counted twice, or with any weights on their
losses. Order, dropout masks, seeds and the divisor of the mean loss stay the same. Then it
evaluates queries (by default the loss on held-out text) before and after. The result is kept in
RUN/analysis/retrain/ and found again by an equal request, also by one of ontogeny lds. Each
--without or --twice is one retraining. After an interruption, run the command again. A file of
weights has columns datum and weight; with a column retraining it describes several.

  ontogeny retrain runs/smooth --without 3,17,20-29
  ontogeny retrain runs/smooth datum:validation:4 --without 3 --without 17 --workers 2
  ontogeny retrain runs/smooth --weights weights.csv"""


def add(commands: "Commands") -> None:
    summary = "Train again without some data, and compare."
    made = add_command(commands, "retrain", run, summary, TEXT)
    add_run(made)
    text = "as in ontogeny influence, default loss: the loss on held-out text"
    add_any_number(made, "queries", metavar="QUERY", help=text)
    for name, what in (("--without", "leave these datums out"), ("--twice", "count them twice")):
        text = f"{what}: numbers and ranges, as in 0-9,12"
        made.add_argument(name, action="append", default=[], metavar="IDS", help=text)
    text = "CSV or Parquet file of weights; 1 is as trained"
    made.add_argument("--weights", action="append", default=[], metavar="FILE", help=text)
    text = "change the weights in steps A to B - 1, or in one step; default all"
    made.add_argument("--steps", metavar="A:B", default=":", help=text)
    add_workers(made)
    text = "keep retrainings in PLACE/analysis/retrain/, for a run that you may only read"
    made.add_argument("--to", metavar="PLACE", help=text)
    add_ray(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.influence.counterfactuals import compare_retrained
    from analysis.influence.queries.parsing import build_queries
    from analysis.run.run import open_run
    from cluster.on_ray.job import require_persistent
    from cluster.options.machines import machines, retraining_sweep
    from cluster.terminal.as_json import print_as_json
    from cluster.terminal.influence.retrain import show_retrained
    from cluster.terminal.progress import counting

    if arguments.to:
        require_persistent("--to", arguments.to)
    opened = open_run(arguments.run, tables=arguments.to)
    opened.require_shards("steps")
    wanted = requests(opened, arguments)
    queries = build_queries(opened, arguments.queries or ["loss"])
    silent = arguments.quiet or arguments.json
    with machines(arguments) as on:
        sweep = retraining_sweep(arguments, on, opened.uri)
        with counting(console, "training again", "retrainings", quiet=silent) as report:
            found = compare_retrained(opened, queries, wanted, report, sweep)
    if arguments.json:
        print_as_json({"retrained": found})
    elif not arguments.quiet:
        show_retrained(console, opened, found)
    return 0


def requests(run: "Run", arguments: argparse.Namespace) -> "list[Request]":
    """The retrainings that the options ask for; raises ``ConfigError`` if there is none."""
    from analysis.influence.counterfactuals import request_for, requests_of_file

    steps, count = chosen_steps(arguments.steps, run.steps_done), run.num_datums
    found = []
    for option, weight in (("--without", 0.0), ("--twice", 2.0)):
        for text in vars(arguments)[option.removeprefix("--")]:
            changed = dict.fromkeys(parse_numbers(option, text, count, "training datums"), weight)
            found.append(request_for(run, f"{option} {text}", changed, steps))
    for path in arguments.weights:
        found += requests_of_file(run, path, steps)
    if not found:
        problem = "is not told which datums to change"
        raise ConfigError("ontogeny retrain", problem, "Give --without, --twice or --weights")
    return found


def chosen_steps(text: str, steps_done: int) -> range | None:
    """The steps of A:B, None for all; raises ``ConfigError`` for steps that were not taken."""
    first, end = parse_steps(text)
    end = steps_done if end is None else end
    if not first < end <= steps_done:
        raise ConfigError("--steps", f"got {text}, the run has steps 0 to {steps_done - 1}")
    return None if (first, end) == (0, steps_done) else range(first, end)
