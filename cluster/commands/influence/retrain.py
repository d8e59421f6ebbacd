"""``ontogeny retrain``: what would the model be without these data?"""

import argparse
import re
from typing import TYPE_CHECKING

from capture.errors import ConfigError, at_least
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run

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
    made.add_argument("queries", nargs="*", metavar="QUERY", help=text)
    for name, what in (("--without", "leave these datums out"), ("--twice", "count them twice")):
        text = f"{what}: numbers and ranges, as in 0-9,12"
        made.add_argument(name, action="append", default=[], metavar="IDS", help=text)
    text = "CSV or Parquet file of weights; 1 is as trained"
    made.add_argument("--weights", action="append", default=[], metavar="FILE", help=text)
    text = "change the weights in these steps only, as in 100-199; default all"
    made.add_argument("--steps", metavar="FIRST-LAST", help=text)
    text = "retrainings at once on this machine, default 1"
    made.add_argument("--workers", type=int, default=1, metavar="N", help=text)
    text = "keep retrainings in PLACE/analysis/retrain/, for a run that you may only read"
    made.add_argument("--to", metavar="PLACE", help=text)
    add_ray(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.influence.counterfactuals import compare_retrained
    from analysis.influence.queries.parsing import build_queries
    from analysis.run.run import open_run
    from cluster.local.work_pool import in_processes
    from cluster.on_ray.job import require_persistent
    from cluster.options.machines import HERE, machines
    from cluster.terminal.as_json import print_as_json
    from cluster.terminal.influence.retrain import show_retrained
    from cluster.terminal.progress import counting

    at_least("--workers", arguments.workers, 1)
    if arguments.to:
        require_persistent("--to", arguments.to)
    opened = open_run(arguments.run, tables=arguments.to)
    opened.require_shards("steps")
    wanted = requests(opened, arguments)
    queries = build_queries(opened, arguments.queries or ["loss"])
    silent = arguments.quiet or arguments.json
    with machines(arguments) as on:
        sweep = in_processes(arguments.workers, opened.uri) if on is HERE else on.sweep
        with counting(console, "training again", "retrainings", quiet=silent) as report:
            found = compare_retrained(opened, queries, wanted, report, sweep)
    if arguments.json:
        print_as_json({"retrained": found})
    elif not arguments.quiet:
        show_retrained(console, opened, found)
    return 0


def requests(run: "Run", arguments: argparse.Namespace) -> "list[Request]":
    """The retrainings that the options ask for; raises ``ConfigError`` if there is none."""
    from analysis.influence.counterfactuals import requests_of_file, reweighted

    steps = chosen_steps(arguments.steps, run.steps_done)
    found = []
    for option, weight in (("--without", 0.0), ("--twice", 2.0)):
        for text in vars(arguments)[option.removeprefix("--")]:
            changed = dict.fromkeys(numbers(option, text, run.num_datums), weight)
            found.append(reweighted(run, f"{option} {text}", changed, steps))
    for path in arguments.weights:
        found += requests_of_file(run, path, steps)
    if not found:
        problem = "is not told which datums to change"
        raise ConfigError("ontogeny retrain", problem, "Give --without, --twice or --weights")
    return found


def numbers(option: str, text: str, count: int) -> list[int]:
    """The numbers of a list such as 0-9,12, each below ``count``; raises ``ConfigError``."""
    chosen: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", part.strip())
        if not found:
            raise ConfigError(option, f"got {text!r}", "Write numbers and ranges: 0-9,12")
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < count:
            problem = f"got {part.strip()!r}, the run has training datums 0 to {count - 1}"
            raise ConfigError(option, problem)
        chosen += range(first, last + 1)
    return chosen


def chosen_steps(text: str | None, steps_done: int) -> range | None:
    """The steps of FIRST-LAST; raises ``ConfigError`` for steps that the run has not taken."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", text.strip())
    if not found:
        raise ConfigError("--steps", f"got {text!r}", "Write FIRST-LAST, as in 100-199")
    first, last = int(found[1]), int(found[2] or found[1])
    if not first <= last < steps_done:
        raise ConfigError("--steps", f"got {text}, the run has steps 0 to {steps_done - 1}")
    return range(first, last + 1)
