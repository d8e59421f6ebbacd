"""Tables of ``ontogeny attribute``: which tokens moved which groups.

Shapes: W window of training.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.attribution.tables import Attribution
from analysis.parameters.tables import ParameterTokens
from cluster.terminal.confirmation_tables import show_confirmation
from cluster.terminal.tables import data_table, print_table, token_list

BARS = "▁▂▃▄▅▆▇█"
KEYS = ["level", "unit", "group"]
TOKENS_SHOWN = 10
UNCONFIRMED = (
    "These tokens moved the weights. Whether a prediction depends on them is not known yet: an\n"
    "untrained model gets such tokens too."
)
HOW_TO_CONFIRM = " --confirm tests each by ablation, beside null models."


@dataclass(frozen=True, kw_only=True)
class Focus:
    """Which part of the tables is printed."""

    rows: int = 20
    unit: str | None = None
    """Only groups of this unit."""
    number: int | None = None
    """Only the group with this number in its unit."""
    token: str | None = None
    """Groups with evidence for this token, instead of the strongest groups."""


def show_attribution(
    console: Console, found: Attribution, focus: Focus, *, confirmable: bool = True
) -> None:
    """Print the groups with most evidence and their tokens, one in full, and what is confirmed.

    ``confirmable`` says whether ``--confirm`` works on the run; only then it is advised.
    """
    level = found.groups["level"].iloc[0] if len(found.groups) else "neuron"
    groups, tokens = (narrowed(table, focus, level) for table in (found.groups, found.tokens))
    if focus.token is not None:
        tokens = tokens[tokens["token"] == focus.token]
        show_token(console, level, tokens, found.windows, focus)
        return
    named = groups.merge(tokens[KEYS].drop_duplicates(), on=KEYS)
    show_groups(console, named, tokens, focus)
    if len(named) > focus.rows:
        console.print(f"The {focus.rows} {level}s with the most evidence are shown.")
    elif not len(named):
        console.print(f"No {level} has more evidence for a token than others have.")
    if len(named):
        show_in_full(console, named.iloc[0], tokens, found.windows, focus)
        console.print(signs(tokens))
        show_contributions(console, found.contributions, named.iloc[0])
    if len(found.confirmed):
        show_confirmation(console, found, level, focus.rows)
    elif len(named):
        console.print(UNCONFIRMED + HOW_TO_CONFIRM * confirmable)


def narrowed(table: pd.DataFrame, focus: Focus, level: str) -> pd.DataFrame:
    """The rows of a level in focus, without tokens that have less evidence than expected."""
    kept = table["level"] == level
    if focus.unit is not None:
        kept &= table["unit"] == focus.unit
    if focus.number is not None:
        kept &= table["group"] == focus.number
    if "relative_frequency" in table:
        kept &= table["relative_frequency"] > 1
    return table[kept]


def show_groups(console: Console, named: pd.DataFrame, tokens: pd.DataFrame, focus: Focus) -> None:
    lists = tokens.groupby(["unit", "group"])["token"].agg(list)
    level = named["level"].iloc[0] if len(named) else "neuron"
    table = data_table("unit", level, "outliers")
    table.add_column("tokens that it has more evidence for than others, highest score first")
    for group in named.head(focus.rows).to_dict("records"):
        listed = escape(token_list(lists[group["unit"], group["group"]], TOKENS_SHOWN))
        table.add_row(group["unit"], number(group), f"{group['rows']:,}", listed)
    print_table(console, f"Token evidence per {level}", table)


def show_in_full(
    console: Console, group: pd.Series, tokens: pd.DataFrame, windows: pd.DataFrame, focus: Focus
) -> None:
    """Print each token of one group: count, relative frequency, q, direction, and when."""
    own = tokens[(tokens["unit"] == group["unit"]) & (tokens["group"] == group["group"])]
    when = histories(own, windows)
    table = data_table("token", "count", "× expected", "q", "up", "strengthened", "when")
    for token in own.head(focus.rows).to_dict("records"):
        table.add_row(escape(token["token"]), *figures(token), when[key_of(token)])
    print_table(console, f"{group['unit']} {group['level']} {number(group)}: its tokens", table)
    explain(console, windows)


def show_contributions(console: Console, contributions: pd.DataFrame, group: pd.Series) -> None:
    """Print what tokens contributed to the change of a neuron; nothing without lifetime shifts."""
    of_unit = contributions["unit"] == group["unit"]
    own = contributions[of_unit & (contributions["group"] == group["group"])]
    if not len(own):
        return
    table = data_table("token", "contribution", "share of the change")
    for row in own.to_dict("records"):
        share = f"{row['share']:+.1%}"
        table.add_row(escape(str(row["token"])), f"{row['contribution']:+.3g}", share)
    title = f"{group['unit']} {group['level']} {number(group)}: what made its change over the run"
    print_table(console, title, table)
    console.print(
        "Lifetime shifts along the change, summed over all positions; shares sum to 100 %."
    )


def show_token(
    console: Console, level: str, tokens: pd.DataFrame, windows: pd.DataFrame, focus: Focus
) -> None:
    """Print each group that a token stands out in, the highest relative frequency first."""
    tokens = tokens.sort_values("relative_frequency", ascending=False, kind="stable")
    when = histories(tokens.head(focus.rows), windows)
    table = data_table("unit", level, "count", "× expected", "q", "up", "strengthened", "when")
    for token in tokens.head(focus.rows).to_dict("records"):
        table.add_row(token["unit"], number(token), *figures(token), when[key_of(token)])
    print_table(console, f"Evidence for “{focus.token}”", table)
    if len(tokens):
        explain(console, windows)
    shown = f"; the {focus.rows} clearest are shown." if len(tokens) > focus.rows else "."
    console.print(f"It stands out for {len(tokens):,} {level}s{shown}")


def figures(token: Mapping[Hashable, float]) -> list[str]:
    """Cells: count, × expected, q, share up, share strengthened."""
    q = f"{token['q']:.1g}" if np.isfinite(token["q"]) else "–"
    parts = [share(token["up"], token["down"]), share(token["strengthened"], token["weakened"])]
    return [f"{token['count']:,}", f"{token['relative_frequency']:.2f}", q, *parts]


def share(part: float, rest: float) -> str:
    return f"{part / (part + rest):.0%}" if part + rest > 0 else "–"


def number(group: Mapping[Hashable, int] | pd.Series) -> str:
    return str(group["group"]) if group["group"] >= 0 else ""


def key_of(token: Mapping[Hashable, object]) -> tuple[object, ...]:
    return tuple(token[name] for name in [*KEYS, "token_id"])


def histories(tokens: pd.DataFrame, windows: pd.DataFrame) -> dict[tuple[object, ...], str]:
    """The weight of each token by window, as bars; the greatest bar of a token is full."""
    keys = [*KEYS, "token_id"]
    own = windows.merge(tokens[keys], on=keys)
    return {key: bars(part["weight"].to_numpy()) for key, part in own.groupby(keys, sort=False)}


def bars(weight_W: np.ndarray) -> str:
    greatest = weight_W.max()
    if not greatest > 0:
        return BARS[0] * len(weight_W)
    heights = np.ceil(weight_W / greatest * len(BARS)).astype(int)
    return "".join(BARS[max(0, height - 1)] for height in heights)


def explain(console: Console, windows: pd.DataFrame) -> None:
    first, end = windows["first_step"].min(), windows["end_step"].max()
    count = windows["window"].nunique()
    parts = "1 part" if count == 1 else f"{count} parts"
    console.print(
        f"when: its weight in {parts} of steps {first} to {end - 1}. × expected: against the "
        "background.\nup: share of shifts above 0; strengthened: of those away from zero."
    )


def signs(tokens: pd.DataFrame) -> str:
    """A line that sums up the signs of all evidence for these tokens."""
    known = tokens[["strengthened", "weakened"]].sum()
    away, towards = known["strengthened"], known["weakened"]
    if not away + towards > 0:
        return "This evidence has no direction: it measures size only."
    if tokens["up"].notna().any():
        return (
            f"{away / (away + towards):.0%} of the evidence for these tokens strengthened existing "
            "weights (moved them away from zero), the rest weakened them."
        )
    return (
        f"{away / (away + towards):.0%} of the ablation estimate for these tokens is positive: "
        "there the neuron lowers the loss. The rest is negative."
    )


# --- one parameter --------------------------------------------------------------------------------


def show_parameter(console: Console, found: ParameterTokens, select: str, *, rows: int) -> None:
    """Print a parameter's outliers and its tokens, by relative frequency, by count, and chosen."""
    about, tokens = found.about.iloc[0], found.tokens
    name, least = f"{about['unit']}:{about['index']}", about["least_count"]
    place = f" (row {about['row']}, column {about['column']})" if about["row"] >= 0 else ""
    console.print(
        f"{escape(name)}{place}: {about['rows']:,} outliers of {about['datums']:,} datums in steps "
        f"{about['first_step']} to {about['last_step']}. {about['up']:.0%} of these shifts are up; "
        f"their sum is {about['shift']:.3g}, the largest |shift| {about['largest']:.3g}."
    )
    chosen = tokens[tokens["chosen_rank"] >= 0].sort_values("chosen_rank")
    orders = {
        "by relative frequency": tokens.sort_values("frequency_rank"),
        "by count": tokens.sort_values("count_rank"),
        f"chosen by {select}": chosen,
    }
    for order, ranked in orders.items():
        table = data_table("token", "count", "frequency", "in training", "× training")
        for token in ranked.head(rows).to_dict("records"):
            shares = (f"{token[column]:.6f}" for column in ("frequency", "train_frequency"))
            ratio = f"{token['relative_frequency']:.2f}"
            table.add_row(escape(token["token"]), f"{token['count']:,}", *shares, ratio)
        print_table(console, f"Tokens of {name}, {order}", table)
    if not (tokens["count"] >= least).any():
        console.print(f"No token occurs {least:,} times or more, so none is compared with chance.")
        return
    console.print(
        f"By chance, with as many outliers at datums drawn at random, tokens with {least:,} "
        f"occurrences or more reach {about['chance']:.2f} × training (95 % of draws)."
    )
    beyond = tokens.loc[tokens["beyond_chance"], "token"]
    named = escape(token_list(beyond, TOKENS_SHOWN)) if len(beyond) else "none"
    console.print(f"Tokens beyond that: {named}.")
