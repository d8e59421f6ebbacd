"""Table of ``ontogeny drift``: the directions that drifted furthest, beside random walks."""

from rich.console import Console

from analysis.influence.directions.bases import DICTIONARY, NEURONS, PCA
from analysis.influence.drift.along import Drift, DriftConfig
from cluster.terminal.tables import data_table, print_table

NOUNS = {NEURONS: "neuron", PCA: "component", DICTIONARY: "atom"}


def show_drift(console: Console, found: Drift, config: DriftConfig, *, rows: int) -> None:
    """Print the first ``rows`` directions, and how many drift further than chance."""
    noun = NOUNS.get(config.basis, "direction")
    table = data_table(noun, "drift", "random walks", "95 % below", "p", "moved")
    for row in found.drift.head(rows).to_dict("records"):
        numbers = (f"{row[name]:.2f}" for name in ("drift", "null_mean", "null_high"))
        table.add_row(str(row["direction"]), *numbers, f"{row['p']:.2f}", f"{row['moved']:.3g}")
    print_table(console, f"Drift of {config.unit} by {noun}, furthest first", table)
    count = len(found.drift)
    console.print(
        f"{found.clear} of {count} {noun}s ({found.clear / count:.0%}) drift further than 95 % of "
        f"{config.walks} random walks of their {found.shifts:,} shifts; by chance 5 %.",
        soft_wrap=True,
    )
