"""``ontogeny behaviour``: which units, heads and neurons did the data behind a behaviour move?"""

import argparse
from functools import partial
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis.behaviour.behaviour import Behaviour, BehaviourConfig, find_moved, write_behaviour
from analysis.behaviour.predicates import Predicate, parse_datums
from analysis.run.run import open_run
from capture.errors import ConfigError, at_least
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run, add_skip_damaged
from cluster.options.machines import machines
from cluster.terminal.progress import counting
from cluster.terminal.tables import data_table, print_skipped, print_table

SIGNIFICANT = 0.05
LEVELS = {"units": "unit", "heads": "attention head", "neurons": "neuron"}
"""Table → what it is about."""
MEASURES = ("rows", "shift", "target")
MEANING = {
    "rows": "share of a datum's outlier rows",
    "shift": "Σ |shift| of a datum's outlier rows at a visit",
    "target": "share of the rows at positions with the target, against the other positions",
}


def add(inner) -> None:
    text = """\
Names a behaviour by the training datums that show it, and compares what they moved with what
other datums moved that are alike but for it: as often seen, words as frequent, as many different
ones. For each unit, attention head and neuron: the share of a datum's outlier rows, the sum of
|shift|, and, with --target, rows at positions with that target against the other positions of
the same datums. Tables go to RUN/analysis/behaviour/."""
    made = add_command(inner, "behaviour", run, "What did the data behind a behaviour move?", text)
    add_run(made)
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--contains", metavar="TOKEN", help="datums that contain a token")
    which.add_argument("--target", metavar="TOKEN", help="datums that have a token as target")
    which.add_argument("--regex", metavar="RE", help="datums whose text suits a pattern (RE2)")
    which.add_argument("--datums", metavar="IDS", help="id,id,… or a file of ids")
    made.add_argument("--controls", type=int, default=5, metavar="N", help="per datum, default 5")
    made.add_argument(
        "--most", type=int, default=2000, metavar="N", help="datums compared, default 2000"
    )
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of all drawing, default 0")
    made.add_argument("--measure", choices=MEASURES, default="rows", help="shown, default rows")
    made.add_argument("--rows", type=int, default=10, metavar="N", help="shown, default 10")
    add_skip_damaged(made)
    add_ray(made)
    add_quiet(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
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
        controls=arguments.controls, max_datums=arguments.most, seed=arguments.seed
    )
    opened = open_run(arguments.run, skip_damaged=arguments.skip_damaged)
    with (
        machines(arguments) as on,
        counting(console, "reading outliers", "rows", quiet=arguments.quiet) as report,
    ):
        found = find_moved(opened, partial(on.run_job, report=report), predicate, config)
    write_behaviour(opened, found)
    if not arguments.quiet:
        show(console, found, measure=arguments.measure, rows=arguments.rows)
    print_skipped(console, opened.skipped)
    return 0


def read_datums(given: str) -> tuple[int, ...]:
    """Ids as they stand on the command line, or in the file that it names."""
    path = Path(given)
    if not path.is_file():
        return parse_datums(given, "--datums")
    try:
        return parse_datums(path.read_text("utf-8"), given)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(given, "is not a text file", "Give a file of ids") from error


def show(console: Console, found: Behaviour, *, measure: str, rows: int) -> None:
    """How the comparison was made, and what was moved more, level by level."""
    (summary,) = found.summary.to_dict("records")
    console.print(
        f"{summary['behaviour']}: {summary['datums']:,}. Compared: {summary['selected']:,} "
        f"with {summary['controls']:,} controls.",
        markup=False,
    )
    apart = found.balance.set_index("covariate")["standardised_difference"]
    remaining = ", ".join(f"{name} {value:+.2f}" for name, value in apart.items())
    console.print(f"Left between them, in standard deviations: {remaining}.", markup=False)
    for name, level in LEVELS.items():
        table = getattr(found, name)
        show_level(console, table[table["measure"] == measure], level, rows)
    console.print(f"Means per datum of the {MEANING[measure]}; q: share of false findings.")


def show_level(console: Console, groups: pd.DataFrame, level: str, rows: int) -> None:
    if groups.empty:
        return
    more = groups[groups["difference"] > 0]
    table = data_table("unit", level, "selected", "control", "ratio", "95 % of difference", "q")
    for group in more.head(rows).to_dict("records"):
        means = [f"{group[key]:.3g}" for key in ("selected_mean", "control_mean")]
        number = "" if group["group"] < 0 else str(group["group"])
        ratio, q = f"{group['ratio']:.2f}", f"{group['q']:.2g}"
        interval = f"{group['low']:+.2g} to {group['high']:+.2g}"
        table.add_row(group["unit"], number, *means, ratio, interval, q)
    num_sure = int((more["q"] <= SIGNIFICANT).sum())
    title = f"Moved more, by {level}: {num_sure} of {len(groups)} with q ≤ {SIGNIFICANT}"
    print_table(console, title, table)
