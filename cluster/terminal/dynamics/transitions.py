"""What ``ontogeny transitions`` prints: the curves that change, in order, and the text."""

from rich.console import Console

from analysis.measures.foremost import foremost
from analysis.transitions.sentences import summarise, turns_back
from analysis.transitions.tables import Transitions
from cluster.terminal.tables import data_table, print_table

MOST_ROWS = 30


def show_transitions(console: Console, found: Transitions) -> None:
    """Print the curves that change, by the step of half their change, then the sentences."""
    table = data_table(
        "curve", "half at step", "95 % interval", "share in a doubling", "p", "verdict"
    )
    count = int(found.curves["half_step"].notna().sum())
    several = found.curves["run"].nunique() > 1
    shown = foremost(found.curves, MOST_ROWS).sort_values("half_step", kind="stable")
    for row in shown.to_dict("records"):
        name = f"{row['metric']} {row['component']}".strip()
        table.add_row(
            f"{row['run']} {name}" if several else name,
            f"{row['half_step']:,.0f}",
            f"{row['half_low']:,.0f} to {row['half_high']:,.0f}",
            f"{row['share']:.0%}",
            f"{max(row['p_smooth'], row['p_walk']):.3f}",
            row["verdict"] + (", then turns back" if turns_back(found, row) else ""),
        )
    told = f"the clearest {MOST_ROWS} of {count}" if count > MOST_ROWS else count
    print_table(console, f"Curves that change ({told}), earliest first", table)
    for line in summarise(found):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
