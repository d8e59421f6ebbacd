"""Table of ``ontogeny directions``: the directions that most influence went through."""

from rich.console import Console

from analysis.influence.confirmation import departure_of
from analysis.influence.directions.along import DirectionsConfig
from analysis.influence.directions.bases import DICTIONARY, NEURONS, PCA
from analysis.influence.directions.tables import Directions
from analysis.jobs.influence_wording import check_lines
from analysis.run.run import Run
from cluster.terminal.tables import data_table, print_table

NOUNS = {PCA: "component", DICTIONARY: "atom"}


def show_directions(
    console: Console, run: Run, found: Directions, config: DirectionsConfig, *, rows: int
) -> None:
    """Print the first ``rows`` directions of each query, with the datum that did most along it."""
    neuron = "neuron" if config.side == "inputs" else "row"
    noun = neuron if config.basis == NEURONS else NOUNS.get(config.basis, "direction")
    leading = found.datums[found.datums["rank"] == 0].set_index(["query", "direction"])["datum"]
    for query, part in found.directions.groupby("query", sort=False):
        table = data_table(noun, "Σ |influence|", "95 % of random", "p", "Σ influence", "datum", "")
        table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
        for row in part.head(rows).to_dict("records"):
            datum = int(leading[query, row["direction"]])
            numbers = (f"{row['absolute']:.3g}", f"{row['null_high']:.3g}", f"{row['p']:.2f}")
            text = str(run.texts[datum])
            table.add_row(
                str(row["direction"]), *numbers, f"{row['influence']:+.3g}", str(datum), text
            )
        title = f"{query}: {config.method} influence through {config.unit} by {noun}"
        print_table(console, title, table)
        if config.method == "unrolled":
            first = int(part["reliable_from"].min())
            if first:
                note = f"Steps before {first} are beyond the horizon of a query, and left out."
                console.print(note, soft_wrap=True)
            checks = found.checks[found.checks["query"] == query]
            for line in check_lines(checks, departure_of(checks)):
                console.print(line, markup=False, soft_wrap=True)
    beyond = int((found.directions["absolute"] > found.directions["null_high"]).sum())
    console.print(
        f"{beyond} of {len(found.directions)} exceed 95 % of {config.random} random directions; by "
        "chance 5 %. datum: the one with the largest absolute influence along the direction.",
        soft_wrap=True,
    )
