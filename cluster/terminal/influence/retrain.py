"""Print the answer of ``ontogeny retrain``."""

import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.run.run import Run
from cluster.terminal.tables import data_table, print_table

LONGEST = 40
"""Letters of a request that are printed."""


def show_retrained(console: Console, run: Run, found: pd.DataFrame) -> None:
    """Print the queries before and after each retraining, and where the models are."""
    table = data_table("retraining", "datums", "query", "trained", "retrained", "change")
    for row in found.itertuples():
        table.add_row(
            escape(shortened(row.asked)),
            f"{row.datums:,}",
            escape(str(row.query)),
            f"{row.trained:.4f}",
            f"{row.retrained:.4f}",
            f"{row.change:+.3g}",
        )
    print_table(console, f"{run.uri}, trained again with other weights of its datums", table)
    for asked, own in found.groupby("asked", sort=False):
        place = f"{run.tables.uri}/analysis/retrain/{own['retraining'].iloc[0]}/"
        console.print(f"{shortened(asked)}: {place}", markup=False, highlight=False, soft_wrap=True)


def shortened(text: object) -> str:
    text = str(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
