"""Tables of ``ontogeny lds``: how well each method predicts what retraining does."""

import math
from collections.abc import Sequence

import pandas as pd
from rich.console import Console

from analysis.influence.judge.tables import Judged
from cluster.terminal.tables import data_table, print_table

TITLES = {
    "lds": "Linear datamodeling score: correlation over random subsets that keep {setting:.0%}",
    "tsloo": "Correlation over {setting:.0f} removals of one datum from one step",
    "removal": "Value left of the query without the {setting:.1%} of datums that a method names",
    "duplication": "Value left of the query with the {setting:.1%} named datums counted twice",
}
MOST_QUERIES = 8
"""Queries whose own values are printed beside the mean."""


def show_judged(console: Console, found: Judged) -> None:
    """Print a table for each test and setting: methods by mean, best first, with intervals."""
    queries = list(dict.fromkeys(found.judgements["query"]))
    summary = found.summary()
    for _, rows in summary.groupby(["test", "setting"], sort=False):
        print_test(console, found.judgements, rows, queries)
    for number, name in enumerate(queries, 1):
        console.print(f"  q{number}: {name}", markup=False, soft_wrap=True)
    console.print(
        f"Means over queries with 95 % bootstrap intervals over queries (n = {len(queries)}). "
        "random: scores or datums drawn at random, the null. A value of 1 means unchanged "
        "(removal, duplication) or perfectly predicted order (correlations).",
        soft_wrap=True,
    )


def print_test(
    console: Console, judgements: pd.DataFrame, rows: pd.DataFrame, queries: Sequence[str]
) -> None:
    """Print the rows of one test; each method's mean, interval and values by query."""
    test, setting = rows["test"].iloc[0], rows["setting"].iloc[0]
    own = judgements[(judgements["test"] == test) & (judgements["setting"] == setting)]
    shown = queries[:MOST_QUERIES]
    numbers = [f"q{number}" for number in range(1, len(shown) + 1)]
    table = data_table("method", "mean", "95 % interval", "n", *numbers)
    for row in in_order(rows, test).to_dict("records"):
        values = own[own["method"] == row["method"]].set_index("query")["value"]
        interval = f"{number(row['low'])} to {number(row['high'])}"
        cells = [number(float(values.get(name, math.nan))) for name in shown]
        table.add_row(row["method"], number(row["mean"]), interval, str(row["queries"]), *cells)
    print_table(console, TITLES[test].format(setting=setting), table)


def in_order(rows: pd.DataFrame, test: str) -> pd.DataFrame:
    """The methods of a test, best first; removal of the right datums leaves little."""
    ascending = test == "removal"
    return rows.sort_values("mean", ascending=ascending, kind="stable", na_position="last")


def number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
