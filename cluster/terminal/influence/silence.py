"""Tables of ``ontogeny silence``: queries without the weights that the datums moved most."""

import math

from rich.console import Console

from analysis.influence.silencing.tables import DATUMS, RANDOM, Silenced
from cluster.terminal.tables import data_table, print_table

UNITS_SHOWN = 5


def show_silenced(console: Console, found: Silenced, *, num_datums: int) -> None:
    """Print a table for each query, then where the weights lie."""
    for query, rows in found.silenced.groupby("query", sort=False):
        table = data_table(
            "case", "weights at 0", "value", "least", "most", "change", "effect left"
        )
        for row in rows.to_dict("records"):
            case = {DATUMS: f"{num_datums:,} datums", RANDOM: f"random (mean of {row['sets']})"}
            weights = f"{row['weights']:,} ({row['share']:.2%})" if row["share"] else ""
            bounds = [f"{row[name]:.4f}" if row["sets"] > 1 else "" for name in ("low", "high")]
            left = "" if math.isnan(row["left"]) else f"{row['left']:.0%}"
            cells = (weights, f"{row['value']:.4f}", *bounds, f"{row['change']:+.4f}", left)
            table.add_row(case.get(row["case"], row["case"]), *cells)
        print_table(console, str(query), table)
    table = data_table("unit", "weights at 0", "moved", "by random datums")
    for row in found.units.head(UNITS_SHOWN).to_dict("records"):
        moved = (f"{row[name]:.3g}" for name in ("moved", "random"))
        table.add_row(row["unit"], f"{row['silenced']:,} of {row['weights']:,}", *moved)
    print_table(console, "Where the datums moved the model most (largest share)", table)
