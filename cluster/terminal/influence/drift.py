"""Table of ``ontogeny drift``: the directions that drifted furthest, beside random walks."""

import math

from rich.console import Console

from analysis.influence.directions.bases import DICTIONARY, NEURONS, PCA
from analysis.influence.drift.along import ALPHA, WEIGHTS, Drift, DriftConfig
from cluster.terminal.tables import data_table, print_table

NOUNS = {NEURONS: "neuron", PCA: "component", DICTIONARY: "atom", WEIGHTS: "weight"}


def show_drift(console: Console, found: Drift, config: DriftConfig, *, rows: int) -> None:
    """Print the first ``rows`` directions, and how many drift further than chance."""
    noun = NOUNS.get(config.basis, "direction")
    table = data_table(noun, "drift", "random walks", "95 % below", "p", "q", "moved")
    for row in found.drift.head(rows).to_dict("records"):
        numbers = (f"{row[name]:.2f}" for name in ("drift", "null_mean", "null_high"))
        chances = (f"{row[name]:.2g}" for name in ("p", "q"))
        table.add_row(str(row["direction"]), *numbers, *chances, f"{row['moved']:.3g}")
    print_table(
        console, f"Agreement of the shifts of {config.unit} by {noun}, furthest first", table
    )
    count = len(found.drift)
    console.print(
        f"The shifts of {found.clear} of {count} {noun}s ({found.clear / count:.0%}) agree "
        f"more than a random walk (q ≤ {ALPHA} over {count} {noun}s; {config.walks} random walks "
        f"of {found.shifts:,} shifts). {floor_sentence(config.walks, count)}",
        soft_wrap=True,
    )


def floor_sentence(walks: int, count: int) -> str:
    """Return the least p of so many walks, and how many of ``count`` directions must have it."""
    floor = f"The least p of {walks} walks is {1 / (walks + 1):.2g}"
    needed = math.ceil(count / (ALPHA * (walks + 1)) - 1e-9)
    if needed < 2:
        return f"{floor}."
    return f"{floor}: q ≤ {ALPHA} needs {needed} rows with it, or more walks (--walks)."
