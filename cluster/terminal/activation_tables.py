"""Tables of ``ontogeny activations``: extreme neurons by token, and one neuron in detail."""

import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.activations.quantities import MEANINGS, Quantity, noun, nouns
from analysis.activations.tables import Activations
from cluster.terminal.tables import data_table, print_table

FIGURES = {  # number of the figure in the study → its title
    1: "on {token}, and on other frequent words",
    2: "on {token}, and its neighbours there",
    3: "on several tokens, and on other frequent words",
}


def show_activations(console: Console, found: Activations, *, rows: int) -> None:
    """Print the extreme neurons of the first ``rows`` tokens, then the compared neuron."""
    about = found.about.iloc[0]
    where = "predict" if about["by"] == "target" else "read"
    console.print(
        f"Mean {MEANINGS[about['quantity']]} over the positions that {where} a token, among "
        f"{about['positions']:,} of {about['datums']:,} datums."
    )
    tokens = list(found.ranks.groupby("token_id", sort=False))
    for _, ranks in tokens[:rows]:
        show_ranks(console, ranks, about["quantity"])
    if len(tokens) > rows:
        console.print(f"{len(tokens) - rows} more tokens are in the tables; see --rows.")
    show_neuron(console, found)


def show_ranks(console: Console, ranks: pd.DataFrame, quantity: Quantity) -> None:
    """Print the neurons of least and greatest mean activation on one token, as the study does."""
    least, most = ("least active", "most active") if quantity == "inputs" else ("least", "greatest")
    table = data_table("rank", least, "mean", most, "mean")
    for row in ranks.to_dict("records"):
        ends = [
            cell
            for end in ("min", "max")
            for cell in (
                f"{row[f'{end}_unit']} {row[f'{end}_neuron']}",
                f"{row[f'{end}_mean']:.3f}",
            )
        ]
        table.add_row(str(row["rank"]), *ends)
    print_table(console, f"{nouns(quantity).capitalize()} on “{ranks['token'].iloc[0]}”", table)


def show_neuron(console: Console, found: Activations) -> None:
    """Print statistics of the compared neuron, and its rank among all on its first token."""
    about = found.about.iloc[0]
    unit, neuron, token = about["unit"], about["neuron"], f"“{about['tokens'][0]}”"
    what = noun(about["quantity"])
    for figure, words in FIGURES.items():
        table = data_table("", "positions", "mean", "std", "25 %", "median", "75 %")
        rows = found.comparisons[found.comparisons["figure"] == figure]
        for row in rows.to_dict("records"):
            name = f"{what} {row['neuron']}" if figure == 2 else str(row["token"])
            style = "bold" if row["focus"] else None
            values = [f"{row[x]:.3f}" for x in ("mean", "std", "q25", "median", "q75")]
            table.add_row(escape(name), f"{row['count']:,}", *values, style=style)
        title = f"{unit}, {what} {neuron} {words.format(token=token)}"
        print_table(console, title, table)
    own = found.statistics[found.statistics["token"] == about["tokens"][0]]
    it = own[(own["unit"] == unit) & (own["neuron"] == neuron)]
    beside = own[own["unit"] == unit]  # means are comparable within a unit, scores everywhere
    higher = int((beside["mean"] > it["mean"].item()).sum())
    clearer = int((own["score"] > it["score"].item()).sum())
    console.print(
        f"On {escape(token)}, {higher:,} of the unit's {len(beside):,} {nouns(about['quantity'])} "
        f"have a higher mean, and {clearer:,} of all {len(own):,} are further from their own "
        "overall mean in standard deviations."
    )
