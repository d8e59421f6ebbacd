"""``ontogeny activations``: what would one see without the record?"""

import argparse

import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.activations.config import ActivationConfig
from analysis.activations.tables import Activations, write_activations
from analysis.activations.tables import activations as measure
from analysis.run.run import Run, open_run
from capture.errors import at_least
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run
from cluster.options.machines import HERE, Machines, machines
from cluster.terminal.progress import counting
from cluster.terminal.tables import data_table, print_table

FIGURES = {
    1: "on {token}, and on other frequent words",
    2: "on {token}, and its neighbours there",
    3: "on several tokens, and on other frequent words",
}


def add(inner) -> None:
    text = """\
The baseline: how active every neuron is where some tokens stand, over all training datums and
with nothing dropped. Shows the neurons of least and greatest mean activation on a token, and one
neuron beside others. By default the tokens and the neuron are the strongest that ontogeny
attribute found, if it was run. A token's positions are those that are to predict it (or, with
--by input, that read it). Tables go to RUN/analysis/activations/."""
    made = add_command(inner, "activations", run, "What do activations alone tell?", text)
    add_run(made)
    made.add_argument("--tokens", metavar="A,B,…", help="as in war,season; default: see above")
    made.add_argument(
        "--neuron", metavar="UNIT:N", help="the compared one, as in layers.2.linear2.weight:96"
    )
    made.add_argument("--by", choices=("target", "input"), default="target", help="default target")
    made.add_argument("--step", type=int, metavar="N", help="of the checkpoint, default the last")
    made.add_argument("--rows", type=int, default=3, metavar="N", help="tokens shown, default 3")
    add_ray(made)
    add_quiet(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    at_least("--rows", arguments.rows, 1)
    config = ActivationConfig(
        tokens=tuple(arguments.tokens.split(",")) if arguments.tokens is not None else (),
        neuron=arguments.neuron,
        by=arguments.by,
        step=arguments.step,
    )
    opened = open_run(arguments.run)
    with machines(arguments) as on:
        activations(opened, config, console, rows=arguments.rows, quiet=arguments.quiet, on=on)
    return 0


def activations(
    run: Run,
    config: ActivationConfig,
    console: Console,
    *,
    rows: int,
    quiet: bool,
    on: Machines = HERE,
) -> None:
    """Measure, write the tables, show the first tokens and the compared neuron."""
    with counting(console, "measuring activations", "datums", quiet=quiet) as report:
        found = measure(run, config, report, on.sweep)
    write_activations(run, found)
    if not quiet:
        show(console, found, rows=rows)


def show(console: Console, found: Activations, *, rows: int) -> None:
    """Extreme neurons by token, then the compared neuron."""
    about = found.about.iloc[0]
    where = "predict" if about["by"] == "target" else "read"
    console.print(
        f"Mean activation over the positions that {where} a token, among {about['positions']:,} "
        f"of {about['datums']:,} datums."
    )
    tokens = list(found.ranks.groupby("token_id", sort=False))
    for _, ranks in tokens[:rows]:
        show_ranks(console, ranks)
    if len(tokens) > rows:
        console.print(f"{len(tokens) - rows} more tokens are in the tables; see --rows.")
    show_neuron(console, found)


def show_ranks(console: Console, ranks: pd.DataFrame) -> None:
    """The study's table of one token."""
    table = data_table("rank", "least active", "mean", "most active", "mean")
    for row in ranks.to_dict("records"):
        ends = [
            cell
            for end in ("min", "max")
            for cell in (
                f"{row[f'{end}_unit']} {row[f'{end}_neuron']}",
                f"{row[f'{end}_mean']:.3f}",
            )
        ]
        table.add_row(str(row["rank"]), *ends)
    print_table(console, f"Neurons on “{ranks['token'].iloc[0]}”", table)


def show_neuron(console: Console, found: Activations) -> None:
    """The figures of the compared neuron, and its place among all on its first token."""
    about = found.about.iloc[0]
    unit, neuron, token = about["unit"], about["neuron"], f"“{about['tokens'][0]}”"
    for figure, words in FIGURES.items():
        table = data_table("", "positions", "mean", "std", "25 %", "median", "75 %")
        rows = found.comparisons[found.comparisons["figure"] == figure]
        for row in rows.to_dict("records"):
            name = f"neuron {row['neuron']}" if figure == 2 else str(row["token"])
            style = "bold" if row["focus"] else None
            values = [f"{row[x]:.3f}" for x in ("mean", "std", "q25", "median", "q75")]
            table.add_row(escape(name), f"{row['count']:,}", *values, style=style)
        title = f"{unit}, neuron {neuron} {words.format(token=token)}"
        print_table(console, title, table)
    own = found.statistics[found.statistics["token"] == about["tokens"][0]]
    it = own[(own["unit"] == unit) & (own["neuron"] == neuron)]
    higher, clearer = (int((own[name] > it[name].item()).sum()) for name in ("mean", "score"))
    console.print(
        f"On {escape(token)}, {higher:,} of {len(own):,} neurons have a higher mean, and "
        f"{clearer:,} are further from their own overall mean in standard deviations."
    )
