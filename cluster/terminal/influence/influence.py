"""What ``ontogeny influence`` prints: the datums that raised and lowered each query most.

Words whose loss carried a datum's influence are marked.

Shapes: T position.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from analysis.influence.config import SWEEPS
from analysis.influence.tables import Influence
from analysis.run.run import Run
from capture.corpus.datums import WORDS
from cluster.terminal.influence.checks import check_lines
from cluster.terminal.plain import printable
from cluster.terminal.tables import data_table, print_table

Row = Mapping[Any, Any]
MOST_QUERIES = 8
"""Queries that are printed; tables hold all."""
MARKED = 0.5
"""Words are marked, strongest first, until they carry this share of the datum's influence."""
MOST_MARKED = 6
WORDS_SHOWN = 40
"""Words of a datum that are printed, around the strongest."""
COMPLETE = 1e-3
"""Largest accepted incompleteness of path influence."""
KINDS = {"outliers": "A preview from recorded shifts at the last checkpoint alone"}
HELPS = {"higher": (" (helpful)", " (harmful)"), "lower": (" (harmful)", " (helpful)")}


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
    show_windows(console, own_rows(found.windows, name))
    show_units(console, own_rows(found.units, name), rows)


def datum_titles(query: Row) -> tuple[str, str]:
    """Return the titles of the datums with positive and with negative influence.

    Baselines say only how they score a datum: retraining does not confirm that they name causes.
    """
    if query["method"] not in SWEEPS:
        return "Datums with the highest scores", "Datums with the lowest scores"
    helps = HELPS.get(query["better"], ("", ""))
    return f"Datums that raised it most{helps[0]}", f"Datums that lowered it most{helps[1]}"


def own_rows(table: pd.DataFrame, query: str) -> pd.DataFrame:
    return table[table["query"] == query]


# --- what the numbers mean ------------------------------------------------------------------------


def explanation(query: Row, checks: pd.DataFrame) -> list[str]:
    """Return what the method says, and how far it can be trusted; ``checks``: of this query."""
    if query["method"] == "path":
        return path_lines(query)
    if query["method"] == "unrolled":
        return [*unrolled_lines(query), *check_lines(checks)]
    kind = KINDS.get(str(query["method"]), f"Scores of the method {query['method']}")
    return [f"{kind}; no claim about causes. Confirm with --method unrolled or ontogeny lds."]


def path_lines(query: Row) -> list[str]:
    first, last = query["first_step"], query["end_step"] - 1
    moved = f"It went from {query['before']:.5g} to {query['after']:.5g} in steps {first} to {last}"
    parts = f"datums {query['datums']:+.4g}"
    if query["decay"]:
        parts += f", weight decay {query['decay']:+.4g}"
    if query["inherited"]:
        parts += f", momentum from before {query['inherited']:+.4g}"
    closes = "complete" if query["incompleteness"] <= COMPLETE else "INCOMPLETE"
    return [
        f"{moved}: {parts}.",
        "Influence: a datum's part in this change, as it happened.",
        f"Books: {closes}; the parts miss the change by {query['incompleteness']:.1e} of their "
        f"absolute sum (limit {COMPLETE:.0e}; quadrature alone {query['quadrature']:.1e}).",
    ]


def unrolled_lines(query: Row) -> list[str]:
    first, end, reliable = query["first_step"], query["end_step"], query["reliable_from"]
    low, high = query["exponent_low"], query["exponent_high"]
    interval = f", 95 % {low:+.4f} to {high:+.4f}" if math.isfinite(low + high) else ""
    growth = (
        f"Horizon: going back {end - first} steps, the derivative grew × {query['growth']:.3g} "
        f"(at most × {query['largest_growth']:.3g}; {query['exponent']:+.4f} a step{interval})."
    )
    lines = ["Influence: without a datum the query would change by about minus this.", growth]
    if reliable <= first:
        return [*lines, "All steps are within the horizon."]
    if reliable >= end:
        return [*lines, "No step is within the horizon: training is chaotic, nothing is shown."]
    note = (
        f"Steps before {reliable} are beyond the horizon; what they did is left out as unreliable."
    )
    return [*lines, note]


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
    token_T = [int(run.token_NT[datum][0]), *map(int, run.target_NT[datum])]
    words = [printable(run.tokens[token]) for token in token_T]
    influence_T = np.zeros(len(words))
    influence_T[1 + positions["position"].to_numpy()] = positions["influence"].to_numpy()
    marked = strongest_words(influence_T)
    centre = int(np.abs(influence_T).argmax())
    start = max(0, min(centre - WORDS_SHOWN // 2, len(words) - WORDS_SHOWN))
    joined = run.config.corpus.tokenizer == WORDS
    line = Text("… " if start else "")
    for t in range(start, min(start + WORDS_SHOWN, len(words))):
        word = (
            words[t] if joined else words[t].replace("Ġ", " ").replace("▁", " ").replace("Ċ", "⏎")
        )
        line.append(f"[{word}]" if t in marked else word, "bold" if t in marked else "")
        line.append(" " if joined else "")
    line.append("…" if start + WORDS_SHOWN < len(words) else "")
    return line


def plain_token(token: str) -> str:
    """Return a subword token with spaces and line breaks as people write them."""
    return token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "⏎")


def strongest_words(influence_T: np.ndarray) -> set[int]:
    """Return the positions that carry ``MARKED`` of the influence with the datum's own sign."""
    own_T = np.maximum(influence_T * np.sign(influence_T.sum()), 0)
    found: set[int] = set()
    for t in np.argsort(-own_T, kind="stable")[:MOST_MARKED].tolist():
        if not own_T[t] > 0 or own_T[list(found)].sum() >= MARKED * own_T.sum():
            break
        found.add(t)
    return found


# --- windows and units ----------------------------------------------------------------------------


def show_windows(console: Console, windows: pd.DataFrame) -> None:
    if len(windows) < 2:
        return
    shown = ["raised", "lowered", *(["decay"] if windows["decay"].any() else [])]
    table = data_table("steps", *shown, "")
    for row in windows.to_dict("records"):
        cells = [f"{row[name]:+.4g}" for name in shown]
        note = "" if row["reliable"] else "beyond the horizon"
        table.add_row(f"{row['first_step']}–{row['end_step'] - 1}", *cells, note)
    print_table(console, "By window of training", table)


def show_units(console: Console, units: pd.DataFrame, rows: int) -> None:
    if units.empty:
        return
    table = data_table("unit", "influence", "Σ |of datums|")
    for row in units.sort_values("absolute", ascending=False).head(rows).to_dict("records"):
        table.add_row(row["unit"], f"{row['influence']:+.4g}", f"{row['absolute']:.4g}")
    print_table(console, "Through which captured units", table)
