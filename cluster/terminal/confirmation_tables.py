"""What ``ontogeny attribute --confirm`` prints: confirmed neurons, beside the same of nulls."""

import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.attribution.tables import Attribution
from analysis.faithfulness.confirmed_pairs import had_already
from analysis.measures.nulls import null_sentences
from cluster.terminal.tables import data_table, print_table

KEYS = ["level", "unit", "group"]


def show_confirmation(console: Console, found: Attribution, level: str, rows: int) -> None:
    """Print how many groups are confirmed, of the record and of nulls, and the clearest ones."""
    table = data_table("case", f"{level}s", "confirmed", "share", "95 % CI", "tokens", "confirmed ")
    for case in found.nulls.to_dict("records"):
        share = f"{case['confirmed_groups'] / max(case['groups'], 1):.1%}"
        interval = f"{100 * case['low']:.1f} to {100 * case['high']:.1f} %"
        cells = [f"{case['groups']:,}", f"{case['confirmed_groups']:,}", share, interval]
        cells += [f"{case['pairs']:,}", f"{case['confirmed_pairs']:,}"]
        table.add_row(escape(case["case"]), *cells)
    if len(found.nulls):
        print_table(console, "Confirmed by ablation on held-out text, and in nulls", table)
    show_confirmed(console, found.confirmed, level, rows)
    for line in remarks(found, level):
        console.print(line)


def show_confirmed(console: Console, confirmed: pd.DataFrame, level: str, rows: int) -> None:
    """Print the strongest confirmed token of each group, largest effect first."""
    hits = confirmed[confirmed["confirmed"]]
    number = hits.groupby(KEYS)["token"].size()
    order = hits["change"].abs().sort_values(ascending=False, kind="stable").index
    strongest = hits.loc[order].drop_duplicates(KEYS)
    table = data_table("unit", level, "tokens", "strongest", "log p", "95 % CI", "n", "steps")
    for row in strongest.head(rows).to_dict("records"):
        cells = [str(row["group"]), str(number[tuple(row[key] for key in KEYS)])]
        cells += [escape(row["token"]), f"{row['change']:+.3f}"]
        cells += [f"{row['low']:+.3f} to {row['high']:+.3f}", f"{row['positions']:,}"]
        table.add_row(row["unit"], *cells, f"{row['first_step']:.0f}–{row['end_step'] - 1:.0f}")
    if len(hits):
        print_table(console, f"Confirmed {level}s, largest effect first", table)
        console.print(
            "tokens: how many are confirmed; log p: mean change of the token's log-probability "
            "when ablated, nats;\nn: held-out positions; steps: those with the most evidence."
        )


def remarks(attribution: Attribution, level: str) -> list[str]:
    """Lines on what was not tested, cannot be confirmed, or is confirmed of a null as well."""
    confirmed = attribution.confirmed
    found = null_sentences(attribution.nulls, level)
    untested = int(confirmed["p"].isna().sum())
    if untested:
        found.append(
            f"{untested:,} of {len(confirmed):,} named tokens occur too rarely in the held-out "
            "text to be tested."
        )
    if old := had_already(confirmed):
        found.append(
            f"{old:,} of {len(confirmed) - untested:,} tested tokens had an effect of this size in "
            "the initial weights already: this was not learned."
        )
    groups = confirmed.drop_duplicates(KEYS)
    dead = int((groups["alive"] == False).sum())  # noqa: E712 - unknown (None) is not dead
    if dead:
        found.append(
            f"{dead:,} of {len(groups):,} {level}s are nearly dead: ablating them changes next to "
            "nothing."
        )
    if confirmed["p"].isna().all():
        found.append("The held-out text is too small to judge any token.")
    return found
