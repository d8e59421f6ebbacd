"""Tables of ``ontogeny behaviour``: what the selected datums moved more than controls."""

import pandas as pd
from rich.console import Console

from analysis.behaviour.behaviour import Behaviour
from cluster.terminal.tables import data_table, print_table

SIGNIFICANT = 0.05

LEVELS = {"units": "unit", "heads": "attention head", "neurons": "neuron"}
"""Table → what one of its rows is about."""

MEANING = {
    "rows": "share of a datum's outlier rows",
    "shift": "Σ |shift| of a datum's outlier rows at a visit",
    "target": "share of the rows at positions with the target, against the other positions",
}


def show_behaviour(console: Console, found: Behaviour, *, measure: str, rows: int) -> None:
    """Print the comparison, its balance, and for each level what the selected datums moved more."""
    (summary,) = found.summary.to_dict("records")
    console.print(
        f"{summary['behaviour']}: {summary['datums']:,}. Compared: {summary['selected']:,} "
        f"with {summary['controls']:,} controls.",
        markup=False,
    )
    apart = found.balance.set_index("covariate")["standardised_difference"]
    remaining = ", ".join(f"{name} {value:+.2f}" for name, value in apart.items())
    console.print(f"Remaining differences, in standard deviations: {remaining}.", markup=False)
    for name, level in LEVELS.items():
        table = getattr(found, name)
        show_level(console, table[table["measure"] == measure], level, rows)
    console.print(f"Means per datum of the {MEANING[measure]}; q: share of false findings.")
    for number in range(len(found.confirmation)):
        show_confirmation(console, found.confirmation.iloc[number], found.confirmed, rows)


def show_confirmation(
    console: Console, level: pd.Series, confirmed: pd.DataFrame, rows: int
) -> None:
    """Print what silencing the moved groups of a level does, beside the controls."""
    own = confirmed[(confirmed["level"] == level["level"]) & confirmed["moved"]]
    table = data_table("unit", level["level"], "change", "elsewhere", "95 % of difference")
    for row in own.head(rows).to_dict("records"):
        interval = f"{row['difference_low']:+.2g} to {row['difference_high']:+.2g}"
        change, elsewhere = f"{row['change']:+.3g}", f"{row['elsewhere']:+.3g}"
        table.add_row(row["unit"], str(row["group"]), change, elsewhere, interval)
    title = f"Silenced on held-out text, by {level['level']}: nats of log p, with the behaviour "
    print_table(console, title + "and elsewhere", table)
    console.print(
        f"Mean difference: {level['moved_difference']:+.3g} nats of {level['moved']} moved, "
        f"{level['control_difference']:+.3g} of {level['controls']} not moved "
        f"(p = {level['p']:.2g}, one-sided Mann-Whitney).",
        markup=False,
    )


def show_level(console: Console, groups: pd.DataFrame, level: str, rows: int) -> None:
    if groups.empty:
        return
    more = groups[groups["difference"] > 0]
    table = data_table("unit", level, "selected", "control", "ratio", "95 % of difference", "q")
    for group in more.head(rows).to_dict("records"):
        means = [f"{group[key]:.3g}" for key in ("selected_mean", "control_mean")]
        number = "" if group["group"] < 0 else str(group["group"])
        ratio, q = f"{group['ratio']:.2f}", f"{group['q']:.2g}"
        interval = f"{group['low']:+.2g} to {group['high']:+.2g}"
        table.add_row(group["unit"], number, *means, ratio, interval, q)
    num_sure = int((more["q"] <= SIGNIFICANT).sum())
    title = f"Moved more, by {level}: {num_sure} of {len(groups)} with q ≤ {SIGNIFICANT}"
    print_table(console, title, table)
