"""Table of ``ontogeny bigrams``: the largest shifts of bigram logits, each with its datums."""

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.bigrams.bigrams import BigramTables
from analysis.run.run import Run
from cluster.terminal.tables import data_table, print_table

AROUND = 4
"""Tokens shown before and after the position in a datum that matches a bigram best."""


def show_bigrams(console: Console, run: Run, found: BigramTables, *, rows: int) -> None:
    """Print the ``rows`` largest shifts, each with its datums."""
    order = found.bigrams["shift"].abs().sort_values(ascending=False, kind="stable").index
    behind = dict(list(found.datums.groupby(["first_step", "rank"])))
    table = data_table("steps", "token", "next", "shift", "share")
    table.add_column("of datum, at the position that matches the bigram best")
    for bigram in found.bigrams.loc[order[:rows]].to_dict("records"):
        key = bigram["first_step"], bigram["rank"]
        add_bigram(table, run, bigram, behind.get(key, pd.DataFrame()))
    print_table(console, "Largest shifts of bigram logits", table)
    if len(found.bigrams) > rows:
        console.print(f"The {rows} largest of {len(found.bigrams):,} are shown.")
    if len(found.datums):
        console.print(
            "share: of the shift; the shares of all datums "
            + ("and the carry " if found.bigrams["carry"].any() else "")
            + f"add up to 100 % (to within {found.bigrams['missed'].abs().max():.0e} of a logit)."
        )


def add_bigram(table: Table, run: Run, bigram: dict, behind: pd.DataFrame) -> None:
    """Add one line for the bigram and its first datum, and one for every further datum."""
    first, end = bigram["first_step"], bigram["end_step"]
    steps = str(first) if end == first + 1 else f"{first}–{end - 1}"
    left = [steps, escape(bigram["token"]), escape(bigram["next"]), f"{bigram['shift']:+.3f}"]
    for cause in behind.to_dict("records"):
        text = excerpt(run, cause["datum"], bigram["token_id"], bigram["next_id"])
        table.add_row(*left, f"{cause['share']:+.0%}", escape(f"{cause['datum']}: {text}"))
        left = [""] * 4
    if behind.empty:
        table.add_row(*left, "", "")
    if bigram["carry"] and not behind.empty:
        share = bigram["carry"] / bigram["shift"]
        table.add_row(
            *left, f"{share:+.0%}", "carry: momentum and weight decay, no datum of the step"
        )


def excerpt(run: Run, datum: int, token: int, following: int) -> str:
    """The datum's tokens around the bigram, or around one of its tokens, or its first tokens."""
    token_T, target_T = run.token_NT[datum], run.target_NT[datum]
    matches_T = 2 * (target_T == following) + (token_T == token)
    position = int(np.argmax(matches_T))
    word_T = [*token_T.tolist(), int(target_T[-1])]
    some = range(max(0, position - AROUND), min(len(word_T), position + 2 + AROUND))
    words = " ".join(run.tokens[word_T[t]] for t in some)
    return f"{'… ' if some.start else ''}{words}{' …' if some.stop < len(word_T) else ''}"
