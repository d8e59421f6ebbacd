"""Say in sentences how runs differ. Each claim stands beside its n, its interval and its null."""

import numpy as np
import pandas as pd

from analysis.transitions.runs.tables import HALF, Comparison
from analysis.transitions.sentences import name_of
from analysis.transitions.shape.shapes import ALPHA

MOST_NAMED = 8


def summarise(found: Comparison) -> list[str]:
    """Return the report, one sentence or a few in each line."""
    parts = (groups, parting, similarity, stability, outliers, outcomes, shares, same_order)
    return [*(line for part in parts for line in part(found)), *found.notes]


def groups(found: Comparison) -> list[str]:
    names = "; ".join(name for name in found.runs["group"].unique() if name)
    return (
        []
        if not names
        else [f"Settings differ, so means, outliers and orders are of runs within groups: {names}."]
    )


def parting(found: Comparison) -> list[str]:
    """Return where each run parts from the first."""
    return [part_sentence(row) for row in found.parting.head(MOST_NAMED).to_dict("records")]


def similarity(found: Comparison) -> list[str]:
    """Return how alike the layers of the first run and each other are, beside the null."""
    table = found.similarity
    lines = []
    for (run, other), own in list(table.groupby(["run", "other"], sort=False))[:MOST_NAMED]:
        same = own[own["layer"] == own["other_layer"]]
        told = ", ".join(f"{row.layer} {row.cka:.2f}" for row in same.itertuples())
        lines.append(
            f"Linear CKA of the layers of {run} and {other} at their ends: {told} (positions "
            f"permuted: at most {own['null'].max():.2f}; n = {own['positions'].iloc[0]:,})."
        )
    return lines


def listed(datums: list[int]) -> str:
    """Return the first datums of a step, and how many there are more."""
    more = len(datums) - MOST_NAMED
    named = ", ".join(map(str, datums[:MOST_NAMED]))
    return f"{named} (and {more} more)" if more > 0 else named


def part_sentence(row: dict) -> str:
    pair = f"{row['run']} and {row['other']}"
    if row["step"] < 0:
        return f"{pair} do not part in the steps that both have."
    own, others = list(row["datums"]), list(row["other_datums"])
    trained = f"the datums of both are {listed(own)}"
    if own != others:
        trained = f"the datums are {listed(own)} in one and {listed(others)} in the other"
    if not row["same_shapes"]:
        return f"{pair} have different architectures: parameters differ in names or shapes."
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


def shares(found: Comparison) -> list[str]:
    """Return how the share of the upper kind of outcome changes over groups."""
    lines = []
    keys = ["metric", "component", "quantity"]
    for _, own in found.shares.groupby(keys, sort=False):
        first = own.iloc[0].to_dict()
        cells = [
            f"{row['upper_share']:.0%} ({row['low']:.0%} to {row['high']:.0%}, n = {row['runs']}) "
            f"with {row['group']}"
            for row in own.to_dict("records")
        ]
        boundary = first["boundary"]
        boundary = np.expm1(boundary) if first["quantity"] == HALF else boundary
        verdict = "differ" if first["q"] <= ALPHA else "do not differ"
        lines.append(
            f"{name_of(first)}, {first['quantity']}: the shares of runs above {boundary:.4g} "
            f"{verdict} between groups (q = {first['q']:.3f}): {'; '.join(cells)}."
        )
    return lines[:MOST_NAMED]


def same_order(found: Comparison) -> list[str]:
    """Return in how many runs of each group whole-model curves pass halves in the same order."""
    table = found.milestones
    table = table[(table["place"] > 0) & (table["component"] == "")]
    orders = {
        run: " → ".join(own.sort_values("place")["metric"])
        for run, own in table.groupby("run", sort=False)
    }
    lines = []
    for group, runs in found.runs.groupby("group", sort=False)["run"]:
        known = pd.Series({run: orders[run] for run in runs if run in orders}, dtype=object)
        if len(known) < 2 or not known.str.contains("→").any():
            continue
        counts = known.value_counts()
        among = f" ({group})" if group else ""
        orders_found = f"{len(counts)} {'order' if len(counts) == 1 else 'orders'}"
        lines.append(
            f"Halves are passed in {orders_found} over {len(known)} runs{among}; the most "
            f"frequent, in {counts.iloc[0]}: {counts.index[0]}."
        )
    return lines
