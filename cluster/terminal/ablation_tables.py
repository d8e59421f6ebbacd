"""Tables of ``ontogeny ablate``: predictions that flip, by neuron and by layer."""

import math
from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.ablation.subjects import NOUNS
from analysis.ablation.tables import Ablation
from cluster.terminal.tables import data_table, print_table

OFTEN = 10
"""Tokens at fewer positions are left out of the flip table, if any token has this many."""


def show_ablation(console: Console, found: Ablation, *, rows: int) -> None:
    """Print how far flips agree with attribution, by neuron and by unit, and one neuron in full."""
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
    print_table(console, f"Predictions that flip when a {level} is ablated", table)
    console.print(
        "tokens: how many different ones flip; notable: how many of these attribution named.\n"
        "they flip, others: share of positions predicting a notable token, or another, that flip.\n"
        "log p: change of the true next token's log-probability, nats."
    )
    console.print(agreement(neurons, NOUNS[level]))
    if len(found.flips):
        clearest_neuron(console, found, rows)
    layers(console, found)


def agreement(neurons: pd.DataFrame, nouns: str) -> str:
    """A line: how many of the neurons that predict notable tokens flip these more often."""
    comparable = neurons[neurons["notable_share"].notna()]
    if comparable.empty:
        return f"Attribution has named no tokens that these {nouns} could flip."
    agree = int((comparable["notable_share"] > comparable["other_share"]).sum())
    return f"{agree} of {len(comparable)} {nouns} flip their notable tokens more than others."


def percent(share: float) -> str:
    """A share in percent, or a dash for NaN."""
    return "–" if math.isnan(share) else f"{share:.2%}"


def times(neuron: Mapping[Hashable, float]) -> str:
    """How many times as often notable tokens flip as others."""
    if neuron["notable_share"] > 0 and neuron["other_share"] == 0:
        return "only they"
    return f"{neuron['ratio']:.1f}" if math.isfinite(neuron["ratio"]) else "–"


def clearest_neuron(console: Console, found: Ablation, rows: int) -> None:
    """Print flips, changes and contexts of the neuron whose notable tokens flip most often."""
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
    """Print the study's table by layer, with intervals over neurons."""
    level = found.neurons["level"].iloc[0]
    table = data_table("unit", NOUNS[level], "flipped tokens", "95 %", "of them notable", "95 % ")
    for layer in found.layers.to_dict("records"):
        cells = [str(layer["neurons"]), f"{layer['flipped_tokens']:.1f}"]
        cells += [ends(layer["flipped_low"], layer["flipped_high"], 1)]
        cells += [f"{layer['notable_share']:.3f}"]
        cells += [ends(layer["notable_low"], layer["notable_high"], 3)]
        table.add_row(layer["unit"], *cells)
    print_table(console, f"By unit, mean over its ablated {NOUNS[level]}", table)


def signed(change: float, digits: int) -> str:
    """A change with its sign; empty for NaN."""
    return "" if math.isnan(change) else f"{change:+.{digits}f}"


def ends(low: float, high: float, digits: int) -> str:
    """An interval; empty for NaN."""
    return "" if math.isnan(low) else f"{low:.{digits}f}–{high:.{digits}f}"
