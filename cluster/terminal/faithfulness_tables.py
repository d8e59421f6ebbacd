"""Table of ``ontogeny faithfulness``: AUC by evidence and unit."""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console

from analysis.faithfulness.faithfulness import SPLIT_HALF, Faithfulness
from analysis.faithfulness.ground_truth import FaithfulnessConfig
from cluster.terminal.tables import data_table, print_table

RANDOM, TOLERANCE = "random", 0.03
"""Label of random evidence, and how far its mean AUC may be from 0.5."""


def show_faithfulness(console: Console, found: Faithfulness, config: FaithfulnessConfig) -> None:
    """Print AUC by evidence and unit, best first, each with its best background and statistic."""
    units = list(dict.fromkeys(found.scores["unit"]))
    table = data_table("evidence", *map(short, units), "mean", "first", "by")
    for _, rows in in_order(found.scores):
        auc = rows.set_index("unit")["auc"]
        by = "·".join(filter(None, [rows["background"].iloc[0], rows["select"].iloc[0]]))
        table.add_row(
            rows["evidence"].iloc[0] + (" *" if rows["baseline"].iloc[0] else ""),
            *(f"{auc[unit]:.2f}" for unit in units),
            f"{auc.mean():.2f}",
            f"{rows['precision'].mean():.2f}",
            by,
        )
    print_table(console, "How well each method ranks the tokens that ablation affects (AUC)", table)
    console.print(
        f"{config.neurons} neurons a unit, {found.tokens:,} tokens with {config.min_count} or more "
        f"of {found.positions:,} positions of {config.text} text; affected: the "
        f"{config.affected:.0%} whose mean log-probability changes most for certain.\n"
        f"first: share of affected tokens among the first {config.first}. *: needs no record. "
        f"by: background·statistic, as in attribute.{legend(units)}"
    )
    if warning := too_small(found.scores):
        console.print(warning)


def too_small(scores: pd.DataFrame) -> str:
    """A warning if random evidence is not near its expected AUC; empty otherwise."""
    auc = scores.loc[scores["evidence"] == RANDOM, "auc"].mean()
    if not abs(auc - 0.5) > TOLERANCE:
        return ""
    return (
        f"The text is too small to judge: random evidence has a mean AUC of {auc:.2f}, expected is "
        "0.50. Differences of this size mean nothing here."
    )


def in_order(scores: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each evidence: split-half reliability first, then by mean AUC, best first."""
    groups = [(str(evidence), rows) for evidence, rows in scores.groupby("evidence", sort=False)]
    return sorted(groups, key=lambda group: (group[0] != SPLIT_HALF, -group[1]["auc"].mean()))


def legend(units: Sequence[str]) -> str:
    """Explain the short name of the first unit, if it has one."""
    (unit, *_) = units
    return "" if short(unit) == unit.removesuffix(".weight") else f" {short(unit)}: {unit}."


def short(unit: str) -> str:
    """layers.2.linear1.weight → 2.1, as in the study, but layers count from 0."""
    return unit.removeprefix("layers.").removesuffix(".weight").replace("linear", "")
