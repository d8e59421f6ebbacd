"""Say in sentences how runs differ. Each claim stands beside its n, its interval and its null."""

import numpy as np
import pandas as pd

from analysis.transitions.runs.tables import HALF, Comparison
from analysis.transitions.sentences import name_of
from analysis.transitions.shape.shapes import ALPHA

MOST_NAMED = 8


def summarise(found: Comparison) -> list[str]:
    """Return the report, one sentence or a few in each line."""
    parts = (groups, parting, stability, outliers, outcomes, same_order)
    return [*(line for part in parts for line in part(found)), *found.notes]


def groups(found: Comparison) -> list[str]:
    names = [name for name in found.runs["group"].unique() if name]
    return [f"Settings differ, so runs are compared within groups: {'; '.join(names)}."] * bool(
        names
    )


def parting(found: Comparison) -> list[str]:
    """Return where each run parts from the first."""
    return [part_sentence(row) for row in found.parting.head(MOST_NAMED).to_dict("records")]


def part_sentence(row: dict) -> str:
    pair = f"{row['run']} and {row['other']}"
    if row["step"] < 0:
        return f"{pair} do not part in the steps that both have."
    datums = [", ".join(map(str, row[name][:MOST_NAMED])) for name in ("datums", "other_datums")]
    trained = f"the datums are {datums[0]} and {datums[1]}"
    if datums[0] == datums[1]:
        trained = f"the datums of both are {datums[0]}"
    if not row["same_weights"]:
        return f"{pair} start from different weights. In step 0 {trained}."
    if row["order_step"] == row["step"]:
        return f"{pair} part in step {row['step']}: {trained}."
    return f"{pair} part in step {row['step']}, where the loss differs though {trained}."


def stability(found: Comparison) -> list[str]:
    """Return mean and deviation of each quantity of whole-model curves."""
    table = found.stability[found.stability["component"] == ""]
    lines = []
    for row in table.head(2 * MOST_NAMED).to_dict("records"):
        numbers = [row["mean"], row["low"], row["high"]]
        group = f" ({row['group']})" if row["group"] else ""
        if row["quantity"] == HALF:
            mean, low, high = np.expm1(numbers)
            spread = f"standard deviation a factor of {np.exp(row['deviation']):.2f}"
            text = f"step {mean:,.0f} (95 % interval {low:,.0f} to {high:,.0f}, {spread}"
        else:
            mean, low, high = numbers
            spread = f"standard deviation {row['deviation']:.2g}"
            text = f"{mean:.4g} (95 % interval {low:.4g} to {high:.4g}, {spread}"
        lines.append(f"{name_of(row)}{group}, {row['quantity']}: {text}, n = {row['runs']} runs).")
    return lines


def outliers(found: Comparison) -> list[str]:
    """Return the runs that are outliers."""
    table = found.outliers
    if not len(table):
        return []
    clear = table[table["outlier"]]
    tests = len(table.drop_duplicates(["metric", "component", "quantity"]))
    lines = [
        f"{clear['run'].nunique()} of {table['run'].nunique()} runs are outliers in some of "
        f"{tests} quantities (q ≤ {ALPHA}; Gaussian runs are the null)."
    ]
    lines += [
        f"{row['run']} is an outlier in {name_of(row)}, {row['quantity']}: robust z "
        f"{row['robust_z']:.1f} (q = {row['q']:.3f})."
        for row in clear.head(MOST_NAMED).to_dict("records")
    ]
    return lines


def outcomes(found: Comparison) -> list[str]:
    """Return the quantities of which runs have two kinds."""
    table = found.outcomes
    if not len(table):
        return []
    clear = table[table["two_kinds"]]
    lines = [
        f"{len(clear)} of {len(table)} quantities have two kinds of outcome over runs (dip test, "
        f"q ≤ {ALPHA}, and two Gaussians have the smaller BIC)."
    ]
    for row in clear.head(MOST_NAMED).to_dict("records"):
        ends = np.array([row["low_mean"], row["high_mean"]])
        ends = np.expm1(ends) if row["quantity"] == HALF else ends
        lines.append(
            f"{name_of(row)}, {row['quantity']}: {1 - row['high_share']:.0%} of runs about "
            f"{ends[0]:.4g}, {row['high_share']:.0%} about {ends[1]:.4g} (q = {row['q']:.3f}, "
            f"n = {row['runs']} runs)."
        )
    return lines


def same_order(found: Comparison) -> list[str]:
    """Return in how many runs the whole-model curves pass their halves in the same order."""
    table = found.milestones
    table = table[(table["place"] > 0) & (table["component"] == "")]
    orders = pd.Series(
        {
            run: " → ".join(own.sort_values("place")["metric"])
            for run, own in table.groupby("run", sort=False)
        }
    )
    if len(orders) < 2 or not orders.str.contains("→").any():
        return []
    counts = orders.value_counts()
    return [
        f"Halves are passed in {len(counts)} orders over {len(orders)} runs; the most frequent, in "
        f"{counts.iloc[0]}: {counts.index[0]}."
    ]
