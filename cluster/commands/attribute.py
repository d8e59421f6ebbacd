"""``ontogeny attribute``: which tokens taught which neurons?"""

import argparse
from functools import partial

from rich.console import Console
from rich.markup import escape

from analysis.attribution import Attribution, AttributionConfig, write_attribution
from analysis.attribution import attribute as analyse
from analysis.run import Run, open_run
from cluster.arguments import add_command, add_quiet, add_run, add_skip_damaged
from cluster.local import run_job
from cluster.progress import counting
from cluster.terminal import data_table, print_skipped, print_table, token_list


def add(inner) -> None:
    text = """\
For each of the parameters with the most outliers: which tokens are more frequent in the datums
behind them than in all datums? Of the tokens seen at least --min-count times, the
--most-frequent ones with the highest relative frequency; of these the --most-counted with the
highest count. A neuron (a column of an MLP weight) takes the tokens of all its parameters.
Tables go to RUN/analysis/attribute/."""
    made = add_command(inner, "attribute", run, "Which tokens taught which neurons?", text)
    add_run(made)
    made.add_argument("--min-count", type=int, default=20, metavar="N", help="default 20")
    made.add_argument("--most-frequent", type=int, default=200, metavar="N", help="default 200")
    made.add_argument("--most-counted", type=int, default=5, metavar="N", help="default 5")
    made.add_argument(
        "--parameters", type=int, default=5000, metavar="N", help="analysed, default 5000"
    )
    made.add_argument("--rows", type=int, default=20, metavar="N", help="shown, default 20")
    add_skip_damaged(made)
    add_quiet(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    config = AttributionConfig(
        max_parameters=arguments.parameters,
        min_count=arguments.min_count,
        most_frequent=arguments.most_frequent,
        most_counted=arguments.most_counted,
    )
    run = open_run(arguments.run, skip_damaged=arguments.skip_damaged)
    attribute(run, config, console, rows=arguments.rows, quiet=arguments.quiet)
    print_skipped(console, run.skipped)
    return 0


def attribute(
    run: Run, config: AttributionConfig, console: Console, *, rows: int, quiet: bool
) -> None:
    """Attribute, write the tables, show the first rows of them."""
    with counting(console, "reading outliers", "rows", quiet=quiet) as report:
        found = analyse(run, partial(run_job, report=report), config)
    write_attribution(run, found)
    if not quiet:
        show(console, found, rows=rows)


def show(console: Console, found: Attribution, *, rows: int) -> None:
    """The neurons that most outliers fell on, and the tokens that stand out in their data."""
    more = found.neurons[found.neurons["relative_frequency"] > 1]
    tokens = more.groupby(["unit", "neuron"])["token"].agg(list)
    neurons = found.summary.drop(columns="tokens")
    named = neurons.merge(tokens.rename("tokens").reset_index(), on=["unit", "neuron"])
    table = data_table("unit", "neuron", "weights", "outliers")
    table.add_column("tokens that its data has more of than all data, strongest first")
    for neuron in named.head(rows).to_dict("records"):
        cells = [neuron["unit"], str(neuron["neuron"]), str(neuron["parameters"])]
        table.add_row(*cells, f"{neuron['rows']:,}", escape(token_list(neuron["tokens"], 10)))
    print_table(console, "What taught the neurons", table)
    console.print(
        f"{len(named)} of {len(neurons)} neurons with analysed weights have such tokens"
        + (f"; the {rows} with most outliers are shown." if len(named) > rows else ".")
    )
