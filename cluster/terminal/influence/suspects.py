"""Tables of ``ontogeny suspects``: the first suspects, how many were planted, and retraining."""

from rich.console import Console

from analysis.influence.confirmation import departure_of
from analysis.influence.suspects.suspects import SuspectsConfig
from analysis.influence.suspects.tables import Suspects
from analysis.jobs.influence_wording import check_lines
from analysis.run.run import Run
from cluster.terminal.tables import data_table, print_table


def show_suspects(
    console: Console, run: Run, found: Suspects, config: SuspectsConfig, *, query: str, rows: int
) -> None:
    """Print the first ``rows`` suspects; ``query`` is empty for unexpected datums.

    Without a truth there is no column for what was planted.
    """
    truth = ["planted"] if found.suspects["planted"].any() else []
    table = data_table("datum", "score", *truth, "text")
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for row in found.suspects.head(rows).to_dict("records"):
        text = str(run.texts[row["datum"]])
        table.add_row(str(row["datum"]), f"{row['score']:.3g}", *(row[own] for own in truth), text)
    what = f"that raise the query most: {query}" if query else "that the model expected least"
    print_table(console, f"Training datums {what} ({config.evidence})", table)
    if config.evidence == "unrolled":
        if first := int(found.suspects["reliable_from"].min()):
            note = f"Steps before {first} are beyond the horizon, and left out."
            console.print(note, soft_wrap=True)
        for line in check_lines(found.checks, departure_of(found.checks)):
            console.print(line, markup=False, soft_wrap=True)
    show_detection(console, found)
    show_retrained(console, found)


def show_detection(console: Console, found: Suspects) -> None:
    """Print how well the ranking finds what was planted, beside chance."""
    if found.detection.empty:
        return
    table = data_table("kind", "AUC", "precision", "average precision", "recall at 95 %", "chance")
    for row in found.detection.to_dict("records"):
        cells = (row["auc"], row["precision"], row["average_precision"], row["precise_recall"])
        chance = f"0.50, {row['planted'] / row['datums']:.3f}"
        table.add_row(
            f"{row['kind']}: {row['planted']:,}, of {row['datums']:,}",
            *(f"{cell:.3f}" for cell in cells),
            chance,
        )
    print_table(console, "Planted datums among the ranked (kind: planted, of all)", table)
    console.print(
        "precision: share of planted datums among as many first ones as were planted. recall at "
        "95 %: share found by the longest list of which at least 95 % were planted. chance: AUC, "
        "and precision, of a random order.",
        soft_wrap=True,
    )


def show_retrained(console: Console, found: Suspects) -> None:
    """Print the query after training without the suspects, and without random datums."""
    if found.retrained.empty:
        return
    table = data_table("without", "datums", "query", "least", "most", "retrainings")
    for row in found.retrained.to_dict("records"):
        numbers = (f"{row[name]:.4f}" for name in ("value", "low", "high"))
        table.add_row(row["removed"], str(row["datums"]), *numbers, str(row["retrainings"]))
    name = found.retrained["query"].iloc[0]
    print_table(console, f"Trained again without these datums; the query is: {name}", table)
