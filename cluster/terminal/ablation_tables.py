"""Tables of ``ontogeny ablate``: changes of log-probabilities by neuron, and flips by layer."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.ablation.subjects import NOUNS
from analysis.ablation.tables import Ablation
from analysis.measures.agreement import Agreement, by_effect, nearly_dead
from cluster.terminal.tables import data_table, print_table

OFTEN = 10
"""Tokens at fewer positions are left out of a neuron's table, if any token has this many."""


def show_ablation(console: Console, found: Ablation, *, rows: int) -> None:
    """Print the effect of each ablation, how far it agrees with attribution, and one in full."""
    neurons = by_effect(found.neurons)
    level = neurons["level"].iloc[0]
    table = data_table("unit", level, "effect", "notable", "95 %", "n", "others", "flips", "")
    for neuron, dead in zip(
        neurons.head(rows).to_dict("records"), nearly_dead(neurons).tolist(), strict=False
    ):
        cells = [unsigned(neuron["rms_change"], 4), signed(neuron["notable_change"], 4)]
        cells += [ends(neuron["notable_change_low"], neuron["notable_change_high"], 4)]
        cells += [f"{neuron['notable_positions']:,}", signed(neuron["other_change"], 4)]
        cells += [f"{neuron['flips']:,}", "nearly dead" if dead else ""]
        table.add_row(neuron["unit"], str(neuron["neuron"]), *cells)
    print_table(console, f"What ablating a {level} changes, largest effect first", table)
    console.print(
        "effect: root mean square change of the true next token's log-probability, nats; notable, "
        "others:\nits mean change where that token is one that attribution named, and elsewhere; "
        "n: positions of\nnotable tokens; flips: positions where the most probable token changes."
    )
    for line in Agreement.of(neurons).sentences(NOUNS[level]):
        console.print(line)
    if len(found.tokens):
        clearest_neuron(console, found, rows)
    layers(console, found)


def clearest_neuron(console: Console, found: Ablation, rows: int) -> None:
    """Print changes, flips and contexts of the neuron that lowers its notable tokens most surely.

    That is the one with the lowest upper bound of the difference; if no bound is known, the one
    with the largest effect.
    """
    neurons = by_effect(found.neurons)
    best = neurons.sort_values("difference_high", na_position="last", kind="stable").iloc[0]
    key = {"unit": best["unit"], "neuron": best["neuron"], "level": best["level"]}
    changes = own_rows(found.tokens.rename(columns={"group": "neuron"}), key)
    flips, contexts = (own_rows(table, key) for table in (found.flips, found.contexts))
    flips_of = flips.set_index("token")["flips"]
    often = changes[changes["count"] >= OFTEN] if (changes["count"] >= OFTEN).any() else changes
    order = often["change"].abs().sort_values(ascending=False, kind="stable").index
    table = data_table("token", "log p", "95 %", "n", "notable", "flips")
    for change in often.loc[order].head(rows).to_dict("records"):
        cells = [signed(change["change"], 3), ends(change["low"], change["high"], 3)]
        cells += [f"{change['count']:,}", "yes" if change["notable"] else ""]
        cells += [f"{flips_of.get(change['token'], 0):,}"]
        table.add_row(escape(change["token"]), *cells)
    title = f"{best['unit']}, {best['level']} {best['neuron']}: the tokens that change most"
    print_table(console, title, table)
    notable = changes.loc[changes["notable"], "token"]
    shown = contexts[contexts["token"].isin(notable)].drop_duplicates("token").head(3)
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
        cells += [unsigned(layer["notable_share"], 3)]
        cells += [ends(layer["notable_low"], layer["notable_high"], 3)]
        table.add_row(layer["unit"], *cells)
    print_table(console, f"By unit, mean over its ablated {NOUNS[level]}", table)
    if found.layers[["flipped_low", "notable_low"]].isna().any(axis=None):
        console.print(
            f"No interval is given for a single one or for {NOUNS[level]} with equal values."
        )


def signed(change: float, digits: int) -> str:
    """A change with its sign; empty for NaN."""
    return "" if math.isnan(change) else f"{change:+.{digits}f}"


def unsigned(size: float, digits: int) -> str:
    """A size; empty for NaN."""
    return "" if math.isnan(size) else f"{size:.{digits}f}"


def ends(low: float, high: float, digits: int) -> str:
    """An interval; empty for NaN."""
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{low:.{digits}f} to {high:.{digits}f}"
