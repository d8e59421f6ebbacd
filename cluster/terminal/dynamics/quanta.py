"""What ``ontogeny quanta`` prints: the clusters by gradients, earliest first, and the text."""

from rich.console import Console

from analysis.transitions.quanta.sentences import summarise
from analysis.transitions.quanta.tables import GRADIENTS, Quanta
from cluster.terminal.plain import printable
from cluster.terminal.tables import data_table, print_table


def show_quanta(console: Console, found: Quanta) -> None:
    """Print the clusters by gradients, by the step of half their change, then the sentences."""
    table = data_table(
        "cluster", "positions", "cosine (null)", "loss", "half at step", "verdict", "targets"
    )
    own = found.clusters[found.clusters["kind"] == GRADIENTS].sort_values("half_step")
    for row in own.to_dict("records"):
        half = "" if row["half_step"] != row["half_step"] else f"{row['half_step']:,.0f}"
        table.add_row(
            str(row["cluster"]),
            str(row["positions"]),
            f"{row['cosine']:.2f} ({row['null_cosine']:.2f})",
            f"{row['first_loss']:.2f} to {row['last_loss']:.2f}",
            half,
            row["verdict"],
            printable(row["tokens"]),
        )
    print_table(console, "Clusters by gradients, earliest first", table)
    for line in summarise(found):
        console.print(f"  {printable(line)}", markup=False, highlight=False, soft_wrap=True)
