"""What ``ontogeny compare`` and ``ontogeny seeds`` print: milestones by run, and the text."""

import numpy as np
from rich.console import Console

from analysis.transitions.runs.sentences import summarise
from analysis.transitions.runs.tables import Comparison
from cluster.terminal.tables import data_table, print_table

MOST_CURVES = 5
MOST_RUNS = 20


def show_comparison(console: Console, found: Comparison) -> None:
    """Print the half step and the end of whole-model curves in each run, then the sentences."""
    rows = found.milestones[found.milestones["component"] == ""]
    metrics = rows["metric"].drop_duplicates().head(MOST_CURVES).tolist()
    table = data_table("run", *metrics)
    for uri in found.runs["run"].head(MOST_RUNS):
        own = rows[rows["run"] == uri].set_index("metric")
        table.add_row(uri, *(cell(own.loc[name]) if name in own.index else "" for name in metrics))
    print_table(console, "Half of the change at step, and the value at the end", table)
    for line in summarise(found):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def cell(row) -> str:
    """One metric of one run; without a step if it does not change."""
    half = f"{row['half_step']:,.0f}: " if np.isfinite(row["half_step"]) else ""
    return f"{half}{row['end']:.4g}"
