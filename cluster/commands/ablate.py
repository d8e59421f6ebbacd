"""``ontogeny ablate``: does silencing a neuron agree with what taught it?"""

import argparse
import math
from collections.abc import Hashable, Mapping

from rich.console import Console
from rich.markup import escape

from analysis.ablation import Ablation, AblationConfig, write_ablation
from analysis.ablation import ablate as silence_neurons
from analysis.run import Run, open_run
from cluster.arguments import add_command, add_quiet, add_run
from cluster.progress import counting
from cluster.terminal import data_table, print_table

OFTEN = 10
"""A token's share of flips is shown from so many positions on."""


def add(inner) -> None:
    text = """\
Sets a neuron's outgoing weights (its column) to zero and compares the model's next-token
predictions before and after, on datums that moved the neuron. Needs ontogeny attribute first.
Tables go to RUN/analysis/ablate/."""
    made = add_command(inner, "ablate", run, "Does silencing a neuron agree?", text)
    add_run(made)
    made.add_argument(
        "--neurons", type=int, default=50, metavar="N", help="strongest neurons, default 50"
    )
    made.add_argument(
        "--datums", type=int, default=2000, metavar="N", help="per neuron, default 2000"
    )
    made.add_argument("--rows", type=int, default=10, metavar="N", help="shown, default 10")
    add_quiet(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    config = AblationConfig(max_neurons=arguments.neurons, max_datums=arguments.datums)
    ablate(open_run(arguments.run), config, console, rows=arguments.rows, quiet=arguments.quiet)
    return 0


def ablate(run: Run, config: AblationConfig, console: Console, *, rows: int, quiet: bool) -> None:
    """Ablate, write the tables, show the first rows of them."""
    with counting(console, "silencing neurons", "predictions", quiet=quiet) as report:
        found = silence_neurons(run, config, report)
    write_ablation(run, found)
    if not quiet:
        show(console, found, rows=rows)


def show(console: Console, found: Ablation, *, rows: int) -> None:
    """How far flips agree with attribution, by neuron and by layer, and one neuron in full."""
    neurons = found.neurons
    table = data_table(
        "unit", "neuron", "flips", "tokens", "notable", "they flip", "others", "ratio"
    )
    for neuron in neurons.head(rows).to_dict("records"):
        counts = [f"{neuron[name]:,}" for name in ("flips", "flipped_tokens", "notable_flipped")]
        shares = [f"{neuron[name]:.2%}" for name in ("notable_share", "other_share")]
        table.add_row(neuron["unit"], str(neuron["neuron"]), *counts, *shares, times(neuron))
    print_table(console, "Predictions that flip when a neuron is silenced", table)
    console.print(
        "tokens: how many different ones flip; notable: how many of these attribution had named.\n"
        "they flip, others: share of positions predicting a notable token, or another, that flip."
    )
    agree = int((neurons["notable_share"] > neurons["other_share"]).sum())
    console.print(f"{agree} of {len(neurons)} neurons flip their notable tokens more than others.")
    if len(found.flips):
        clearest_neuron(console, found, rows)
    layers(console, found)


def times(neuron: Mapping[Hashable, float]) -> str:
    """How many times as often notable tokens flip."""
    if neuron["notable_share"] > 0 and neuron["other_share"] == 0:
        return "only they"
    return f"{neuron['ratio']:.1f}" if math.isfinite(neuron["ratio"]) else "–"


def clearest_neuron(console: Console, found: Ablation, rows: int) -> None:
    """Flip table and contexts of the neuron whose notable tokens flip most often."""
    best = found.neurons.sort_values("notable_share", na_position="first").iloc[-1]
    flips, contexts = (
        table[(table["unit"] == best["unit"]) & (table["neuron"] == best["neuron"])]
        for table in (found.flips, found.contexts)
    )
    often = flips[flips["count"] >= OFTEN] if (flips["count"] >= OFTEN).any() else flips
    table = data_table("token", "proportion", "count", "notable")
    for flip in often.head(rows).to_dict("records"):
        proportion, notable = f"{flip['proportion']:.3f}", "yes" if flip["notable"] else ""
        table.add_row(escape(flip["token"]), proportion, f"{flip['count']:,}", notable)
    title = f"{best['unit']}, neuron {best['neuron']}: the tokens that flip most often"
    print_table(console, title, table)
    tokens = often.loc[often["notable"], "token"].head(3)
    shown = contexts[contexts["token"].isin(tokens)].drop_duplicates("token")
    if len(shown):
        console.print("In context, (before after) where the next token is predicted:")
    for context in shown["context"]:
        console.print(f"  {context}", markup=False)


def layers(console: Console, found: Ablation) -> None:
    """The study's layer table."""
    table = data_table("unit", "neurons", "flipped tokens", "of them notable")
    for layer in found.layers.to_dict("records"):
        share = f"{layer['notable_share']:.3f}"
        table.add_row(layer["unit"], str(layer["neurons"]), f"{layer['flipped_tokens']:.1f}", share)
    print_table(console, "By unit, mean over its silenced neurons", table)
