"""``ontogeny ablate``: does silencing a neuron agree with what taught it?"""

import argparse
import math
from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.ablation.ablate import ablate as silence
from analysis.ablation.ablate import write_ablation
from analysis.ablation.config import SPLITS, AblationConfig
from analysis.ablation.replacement import VALUES
from analysis.ablation.subjects import LEVELS, NOUNS
from analysis.ablation.tables import Ablation
from analysis.run.run import Run, open_run
from capture.errors import at_least
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run
from cluster.options.machines import HERE, Machines, machines
from cluster.terminal.progress import counting
from cluster.terminal.tables import data_table, print_table

OFTEN = 10
"""A token's share of flips is shown from so many positions on."""


def add(inner) -> None:
    text = """\
Silences columns (neurons) or rows of weights, or attention heads, one at a time, and compares the
model before and after: which next-token predictions flip, and how far the log-probability of each
true next token falls. By default the neurons that attribution named, each on the datums that moved
it most. Needs ontogeny attribute first. Tables go to RUN/analysis/ablate/.

  ontogeny ablate runs/demo --only layers.2.linear2.weight:17,80
  ontogeny ablate runs/demo --level head --all --value mean --split validation"""
    made = add_command(inner, "ablate", run, "Does silencing a neuron agree?", text)
    add_run(made)
    add_choice(made)
    made.add_argument(
        "--value",
        choices=VALUES,
        default="zero",
        help="what stands in: zero weights (default), the mean over the training text, or "
        "the value at a random other position",
    )
    made.add_argument(
        "--split", choices=SPLITS, default="train", help="the text, default train (attributed)"
    )
    made.add_argument("--datums", type=int, default=2000, metavar="N", help="each, default 2000")
    made.add_argument(
        "--scored-datums",
        type=int,
        default=200,
        metavar="N",
        help="of these, to compute log-probabilities on; default 200, 0 for none",
    )
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of samples, default 0")
    made.add_argument("--rows", type=int, default=10, metavar="N", help="shown, default 10")
    add_ray(made)
    add_quiet(made)


def add_choice(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--level", choices=LEVELS, default="neuron", help="columns (neuron, default), rows or heads"
    )
    made.add_argument(
        "--neurons", type=int, default=50, metavar="N", help="strongest attributed, default 50"
    )
    made.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="UNIT:NUMBER[,NUMBER…]",
        help="these instead; for heads, layers.0.self_attn:2",
    )
    made.add_argument(
        "--all", action="store_true", help="every head, or every column or row of MLP weights"
    )


def run(arguments: argparse.Namespace, console: Console) -> int:
    at_least("--rows", arguments.rows, 1)
    config = AblationConfig(
        level=arguments.level,
        value=arguments.value,
        only=tuple(arguments.only),
        everything=arguments.all,
        max_neurons=arguments.neurons,
        max_datums=arguments.datums,
        scored_datums=arguments.scored_datums,
        split=arguments.split,
        seed=arguments.seed,
    )
    opened = open_run(arguments.run)
    with machines(arguments) as on:
        ablate(opened, config, console, rows=arguments.rows, quiet=arguments.quiet, on=on)
    return 0


def ablate(
    run: Run,
    config: AblationConfig,
    console: Console,
    *,
    rows: int,
    quiet: bool,
    on: Machines = HERE,
) -> None:
    """Ablate, write the tables, show the first rows of them."""
    what = f"silencing {NOUNS[config.level]}"
    with counting(console, what, "datums", quiet=quiet) as report:
        found = silence(run, config, report, on.sweep)
    write_ablation(run, found)
    if not quiet:
        show(console, found, rows=rows)


def show(console: Console, found: Ablation, *, rows: int) -> None:
    """How far flips agree with attribution, by neuron and by layer, and one neuron in full."""
    neurons = found.neurons
    level = neurons["level"].iloc[0]
    table = data_table(
        "unit", level, "flips", "tokens", "notable", "they flip", "others", "ratio", "log p"
    )
    for neuron in neurons.head(rows).to_dict("records"):
        counts = [f"{neuron[name]:,}" for name in ("flips", "flipped_tokens", "notable_flipped")]
        shares = [percent(neuron["notable_share"]), percent(neuron["other_share"])]
        cells = [*counts, *shares, times(neuron), signed(neuron["change"], 4)]
        table.add_row(neuron["unit"], str(neuron["neuron"]), *cells)
    print_table(console, f"Predictions that flip when a {level} is silenced", table)
    console.print(
        "tokens: how many different ones flip; notable: how many of these attribution had named.\n"
        "they flip, others: share of positions predicting a notable token, or another, that flip.\n"
        "log p: what the true next token's log-probability gains, nats."
    )
    console.print(agreement(neurons, NOUNS[level]))
    if len(found.flips):
        clearest_neuron(console, found, rows)
    layers(console, found)


def agreement(neurons: pd.DataFrame, nouns: str) -> str:
    """How many of those that predict notable tokens flip them more often."""
    judged = neurons[neurons["notable_share"].notna()]
    if judged.empty:
        return f"Attribution has named no tokens that these {nouns} could flip."
    agree = int((judged["notable_share"] > judged["other_share"]).sum())
    return f"{agree} of {len(judged)} {nouns} flip their notable tokens more than others."


def percent(share: float) -> str:
    """A share, or a dash where there is none."""
    return "–" if math.isnan(share) else f"{share:.2%}"


def times(neuron: Mapping[Hashable, float]) -> str:
    """How many times as often notable tokens flip."""
    if neuron["notable_share"] > 0 and neuron["other_share"] == 0:
        return "only they"
    return f"{neuron['ratio']:.1f}" if math.isfinite(neuron["ratio"]) else "–"


def clearest_neuron(console: Console, found: Ablation, rows: int) -> None:
    """Flip table, moves and contexts of the neuron whose notable tokens flip most often."""
    best = found.neurons.sort_values("notable_share", na_position="first").iloc[-1]
    key = {"unit": best["unit"], "neuron": best["neuron"], "level": best["level"]}
    flips, contexts = (own_rows(table, key) for table in (found.flips, found.contexts))
    often = flips[flips["count"] >= OFTEN] if (flips["count"] >= OFTEN).any() else flips
    table = data_table("token", "proportion", "95 %", "count", "notable", "log p")
    changes = own_rows(found.tokens.rename(columns={"group": "neuron"}), key)
    change_of = changes.set_index("token")["change"]
    for flip in often.head(rows).to_dict("records"):
        interval = ends(flip["low"], flip["high"], 2)
        notable = "yes" if flip["notable"] else ""
        change = change_of.get(flip["token"], math.nan)
        cells = [f"{flip['proportion']:.3f}", interval, f"{flip['count']:,}", notable]
        table.add_row(escape(flip["token"]), *cells, signed(change, 3))
    title = f"{best['unit']}, {best['level']} {best['neuron']}: the tokens that flip most often"
    print_table(console, title, table)
    tokens = often.loc[often["notable"], "token"].head(3)
    shown = contexts[contexts["token"].isin(tokens)].drop_duplicates("token")
    if len(shown):
        console.print("In context, (before after) where the next token is predicted:")
    for context in shown["context"]:
        console.print(f"  {context}", markup=False)


def own_rows(table: pd.DataFrame, key: Mapping[str, object]) -> pd.DataFrame:
    """The rows of one neuron."""
    return table[np.logical_and.reduce([table[name] == value for name, value in key.items()])]


def layers(console: Console, found: Ablation) -> None:
    """The study's layer table, with intervals over neurons."""
    level = found.neurons["level"].iloc[0]
    table = data_table("unit", NOUNS[level], "flipped tokens", "95 %", "of them notable", "95 % ")
    for layer in found.layers.to_dict("records"):
        cells = [str(layer["neurons"]), f"{layer['flipped_tokens']:.1f}"]
        cells += [ends(layer["flipped_low"], layer["flipped_high"], 1)]
        cells += [f"{layer['notable_share']:.3f}"]
        cells += [ends(layer["notable_low"], layer["notable_high"], 3)]
        table.add_row(layer["unit"], *cells)
    print_table(console, f"By unit, mean over its silenced {NOUNS[level]}", table)


def signed(change: float, digits: int) -> str:
    """A change; nothing where it is not known."""
    return "" if math.isnan(change) else f"{change:+.{digits}f}"


def ends(low: float, high: float, digits: int) -> str:
    """An interval; nothing where there is none."""
    return "" if math.isnan(low) else f"{low:.{digits}f}–{high:.{digits}f}"
