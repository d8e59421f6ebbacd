"""What ``ontogeny influence`` prints: the datums that raised and lowered each query most.

Words whose loss carried a datum's influence are marked.

Shapes: T position.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from analysis.influence.tables import Influence
from analysis.jobs.influence_wording import (
    datum_titles,
    explanation,
    influence_of_words,
    joined_by,
    strongest_words,
    words_of,
)
from analysis.run.run import Run
from cluster.terminal.plain import printable
from cluster.terminal.tables import data_table, print_table

Row = Mapping[Any, Any]
MOST_QUERIES = 8
"""Queries that are printed; tables hold all."""
WORDS_SHOWN = 40
"""Words of a datum that are printed, around the strongest."""


def show_influence(console: Console, run: Run, found: Influence, *, rows: int) -> None:
    """Print each query: its horizon or completeness, strongest datums, windows and units."""
    for query in found.queries.head(MOST_QUERIES).to_dict("records"):
        show_query(console, run, found, query, rows)
    more = len(found.queries) - MOST_QUERIES
    if more > 0:
        console.print(f"\n{more} more queries are in the tables.")


def show_query(console: Console, run: Run, found: Influence, query: Row, rows: int) -> None:
    name = str(query["query"])
    console.print()
    console.print(Text(printable(name), style="bold"), soft_wrap=True)
    for line in explanation(query, own_rows(found.checks, name)):
        console.print(line, markup=False, soft_wrap=True)
    for raised, title in zip((True, False), datum_titles(query), strict=True):
        datums = found.strongest(name, rows, raised=raised)
        console.print(f"\n  {title}:")
        if datums.empty:
            console.print("  none")
        for datum in datums.to_dict("records"):
            positions = own_rows(found.positions, name)
            show_datum(console, run, datum, positions[positions["datum"] == datum["datum"]])
    show_windows(console, own_rows(found.windows, name), own_rows(found.steps, name))
    show_units(console, own_rows(found.units, name), rows)


def own_rows(table: pd.DataFrame, query: str) -> pd.DataFrame:
    return table[table["query"] == query]


# --- datums ---------------------------------------------------------------------------------------


def show_datum(console: Console, run: Run, datum: Row, positions: pd.DataFrame) -> None:
    """Print a datum's influence and its text, with the words that carried it marked."""
    head = f"  {datum['influence']:+11.4g}  datum {datum['datum']}"
    if not pd.isna(datum["times"]):
        head += f", in {datum['times']} step{'' if datum['times'] == 1 else 's'}"
    console.print(head, markup=False, highlight=False)
    line = marked_text(run, int(datum["datum"]), positions)
    line.pad_left(4)
    console.print(line, soft_wrap=True)


def marked_text(run: Run, datum: int, positions: pd.DataFrame) -> Text:
    """Return a datum's text, the strongest words in brackets and bold."""
    if run.has_numbered_datums:
        return Text("(the run has no text)")
    words = [printable(word) for word in words_of(run, datum)]
    influence_T = influence_of_words(len(words), positions)
    marked = strongest_words(influence_T)
    centre = int(np.abs(influence_T).argmax())
    start = max(0, min(centre - WORDS_SHOWN // 2, len(words) - WORDS_SHOWN))
    line = Text("… " if start else "")
    for t in range(start, min(start + WORDS_SHOWN, len(words))):
        line.append(f"[{words[t]}]" if t in marked else words[t], "bold" if t in marked else "")
        line.append(joined_by(run))
    line.append("…" if start + WORDS_SHOWN < len(words) else "")
    return line


# --- windows and units ----------------------------------------------------------------------------


def show_windows(console: Console, windows: pd.DataFrame, steps: pd.DataFrame) -> None:
    """Print what each window did; one in which the horizon lies is cut there."""
    if len(windows) < 2:
        return
    shown = ["raised", "lowered", *(["decay"] if windows["decay"].any() else [])]
    table = data_table("steps", *shown, "")
    for row in windows.to_dict("records"):
        first, last = row["first_step"], row["end_step"] - 1
        within = steps[steps["step"].between(first, last) & steps["reliable"]]
        start = last + 1 if within.empty else within["step"].min()
        if start > first:
            table.add_row(f"{first}–{start - 1}", *("" for _ in shown), "beyond the horizon")
        if start <= last:
            table.add_row(f"{start}–{last}", *(f"{within[name].sum():+.4g}" for name in shown), "")
    print_table(console, "By window of training", table)


def show_units(console: Console, units: pd.DataFrame, rows: int) -> None:
    if units.empty:
        return
    table = data_table("unit", "influence", "Σ |of datums|")
    for row in units.sort_values("absolute", ascending=False).head(rows).to_dict("records"):
        table.add_row(row["unit"], f"{row['influence']:+.4g}", f"{row['absolute']:.4g}")
    print_table(console, "Through which captured units", table)
