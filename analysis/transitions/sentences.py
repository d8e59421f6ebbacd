"""Say in sentences what was found. Each claim stands beside its n, its interval and its null."""

import pandas as pd

from analysis.measures.foremost import foremost
from analysis.transitions.curves import MIN_POINTS
from analysis.transitions.shape.shapes import ALPHA
from analysis.transitions.shape.sudden import LEAST
from analysis.transitions.tables import (
    BEFORE,
    CONSTANT,
    GRADUAL,
    SHORT,
    STEEP,
    SUDDEN,
    TOGETHER,
    UNCHANGED,
    UNRESOLVED,
    Transitions,
)
from analysis.transitions.timing.order import MOST_CURVES

MOST_NAMED = 6
"""Curves, pairs or datums that a paragraph names."""
MOST_MILESTONES = 16
"""Metrics whose halves a line names."""


def summarise(found: Transitions) -> list[str]:
    """Return the report, one sentence or a few in each line."""
    parts = (verdicts, milestones, change_points, order, coincidence, warnings, states, moved)
    return [*(line for part in parts for line in part(found)), *found.notes]


def name_of(row: dict, prefix: str = "") -> str:
    metric, component = row[f"{prefix}metric"], row[f"{prefix}component"]
    return f"{metric} of {component}" if component else str(metric)


def where(row: dict, runs: int) -> str:
    """Return "" for one run, else which run a row is about."""
    return f" ({row['run']})" if runs > 1 else ""


def steps(low: float, high: float) -> str:
    return f"95 % interval {low:,.0f} to {high:,.0f}"


def verdicts(found: Transitions) -> list[str]:
    """Return how many curves change suddenly, and the halves of those."""
    table = found.curves
    tested = table[~table["verdict"].isin([SHORT, UNCHANGED, CONSTANT])]
    still = int((table["verdict"] == UNCHANGED).sum())
    runs = table["run"].nunique()
    counts = tested["verdict"].value_counts()
    told = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if name in counts)
    short = table[table["verdict"] == SHORT]
    of = f"{len(table) - len(short)} {'tested ' if len(short) else ''}curves"
    lines = [f"{len(tested)} of {of} change{': ' + told if told else ''}."]
    if len(short):
        names = ", ".join(short["metric"].drop_duplicates().head(5))
        lines.append(
            f"{len(short)} of {len(table)} curves have fewer than {MIN_POINTS} points and are not "
            f"tested ({names}). Measure more checkpoints for them: --steps of ontogeny trajectory."
        )
    if still:
        lines.append(
            f"{still} {plural('curve', still)} {'stays' if still == 1 else 'stay'} within "
            "the noise from point to point, or within the error over held-out datums."
        )
    if constant := int((table["verdict"] == CONSTANT).sum()):
        are = "is" if constant == 1 else "are"
        lines.append(f"{constant} {plural('curve', constant)} {are} constant up to rounding.")
    lines += [
        f"{name_of(row)}{where(row, runs)} changes suddenly: {row['share']:.0%} of its change "
        f"is made while the step doubles, most of it from step {row['window_first']:,.0f} to "
        f"{row['window_end']:,.0f}. {half(found, row)} "
        f"Smooth curves with its noise reach this with p = {row['p_smooth']:.3f}, random walks "
        f"with p = {row['p_walk']:.3f}; q = {row['q']:.3f} over the curves of the run."
        for row in tested[tested["verdict"] == SUDDEN].head(MOST_NAMED).to_dict("records")
    ]
    lines += [MEANING[name] for name in VERDICTS if name in counts and name in MEANING]
    steep = tested[(tested["verdict"] == STEEP) & (tested["p_walk"] <= ALPHA)]
    lines += [
        f"{name_of(row)}{where(row, runs)} is steep and not sudden by its q: p = "
        f"{max(row['p_smooth'], row['p_walk']):.3f}, but q = {row['q']:.3f} over the curves of "
        "the run."
        for row in steep.head(MOST_NAMED).to_dict("records")
    ]
    return lines


def milestones(found: Transitions) -> list[str]:
    """Return when the clearest curve of each metric makes half of its change, a line a run."""
    lines = []
    for run, own in list(found.curves.groupby("run", sort=False))[:MOST_NAMED]:
        first = foremost(own.drop_duplicates(["metric", "component"]), len(own))
        first = first.drop_duplicates("metric")
        told = first.head(MOST_MILESTONES).sort_values("half_step", kind="stable")
        if told.empty:
            continue
        of = f" in {run}" if found.curves["run"].nunique() > 1 else ""
        more = len(first) - len(told)
        others = f"; {more} {plural('metric', more)} more" if more else ""
        words = "; ".join(milestone(found, row) for row in told.to_dict("records"))
        lines.append(f"Steps of half the change{of}, earliest first: {words}{others}.")
    return lines


def milestone(found: Transitions, row: dict) -> str:
    """Return the step of a curve's half, its interval and its verdict."""
    low, high = (f"{row[name]:,.0f}" for name in ("half_low", "half_high"))
    turns = ", turns back" if turns_back(found, row) else ""
    return f"{name_of(row)} {row['half_step']:,.0f} ({low} to {high}, {row['verdict']}{turns})"


def half(found: Transitions, row: dict) -> str:
    """Return where a curve makes half of its change, and whether it turns back afterwards."""
    interval = steps(row["half_low"], row["half_high"])
    if turns_back(found, row):
        return (
            f"Half of the way to its furthest value is made at step {row['half_step']:,.0f} "
            f"({interval}); afterwards it turns back by more than half of its range."
        )
    return f"Half of the change is made at step {row['half_step']:,.0f} ({interval})."


def turns_back(found: Transitions, row: dict) -> bool:
    """Whether a curve ends nearer to its first value than half of its range."""
    points = found.points
    for name in ("run", "metric", "component"):
        points = points[points[name] == row[name]]
    value = points["value"].to_numpy()
    return bool(abs(value[-1] - value[0]) < row["change"] / 2)


VERDICTS = (SUDDEN, STEEP, GRADUAL, UNRESOLVED)
MEANING = {
    STEEP: f"Steep: {LEAST:.0%} or more of the change is made while the step doubles, more than in "
    f"smooth curves, but random walks do so too, or q > {ALPHA} over the curves of the run.",
    UNRESOLVED: "Unresolved: the change lies between checkpoints that are further apart than a "
    "doubling of the step.",
}


def change_points(found: Transitions) -> list[str]:
    """Return the change points that explain more than those of both nulls."""
    table = found.changes
    if not len(table):
        return []
    clear = table[(table["p_smooth"] <= ALPHA) & (table["p_walk"] <= ALPHA)]
    lines = [
        f"BIC cuts the curves at {len(table)} points; {len(clear)} of them explain more than 95 % "
        f"of cuts of smooth curves and of random walks do (by chance at most {ALPHA:.0%})."
    ]
    lines += [
        f"{name_of(row)}{where(row, table['run'].nunique())} changes course at step "
        f"{row['step']:,.0f} ({steps(row['low'], row['high'])})."
        for row in clear.sort_values("gain", ascending=False).head(MOST_NAMED).to_dict("records")
    ]
    return lines


def order(found: Transitions) -> list[str]:
    """Return how many pairs have an order, and those furthest apart."""
    table = found.order
    if not len(table):
        return []
    ahead = table[table["relation"] == BEFORE].sort_values("factor", ascending=False)
    together = int((table["relation"] == TOGETHER).sum())
    lines = [
        f"Of {len(table)} {plural('pair', len(table))} of curves, {len(ahead)} make half of "
        f"their change one after the other and {together} together; of two curves of one law at "
        "most 5 % get an order."
    ]
    changing = found.curves.loc[found.curves["half_step"].notna(), ["metric", "component"]]
    if (num_changing := len(changing.drop_duplicates())) > MOST_CURVES:
        lines.append(
            f"Compared are the {MOST_CURVES} of {num_changing} curves whose change is largest "
            "relative to their noise."
        )
    lines += [
        f"{name_of(row)} is before {name_of(row, 'other_')}, by a factor of "
        f"{row['factor']:.2f} in step (95 % interval {row['low']:.2f} to {row['high']:.2f}, "
        f"n = {row['runs']} {plural('run', row['runs'])})."
        for row in ahead.head(MOST_NAMED).to_dict("records")
    ]
    return lines


def coincidence(found: Transitions) -> list[str]:
    """Return which curves change where the loss does."""
    table = found.coincidence
    if not len(table):
        return []
    clear = table[table["q"] <= ALPHA]
    lines = [
        f"{len(clear)} of {len(table)} curves have their steepest window where the loss changes "
        f"more than in 95 % of equal windows (q ≤ {ALPHA})."
    ]
    lines += [
        f"{row['loss_share']:.0%} of the change of {row['loss']} lies in the window of "
        f"{name_of(row)}; the median of all windows is {row['null_share']:.1%}."
        for row in clear.sort_values("loss_share", ascending=False)
        .head(MOST_NAMED)
        .to_dict("records")
    ]
    return lines


def warnings(found: Transitions) -> list[str]:
    """Return the curves that lead the target, and how many do."""
    table = found.warnings
    if not len(table):
        return []
    ahead = table[table["earlier"]]
    target = table["target"].iloc[0]
    lines = [
        f"{len(ahead)} of {len(table)} curves make half of their change before {target} does. That "
        "a curve is early is no sign that the target follows from it."
    ]
    for row in ahead.head(MOST_NAMED).to_dict("records"):
        tie = f", rank correlation over runs {row['correlation']:.2f} (p = {row['p']:.3f})"
        lines.append(
            f"{name_of(row)} leads by {row['lead_steps']:,.0f} steps "
            f"({steps(row['lead_low'], row['lead_high'])}, n = {row['runs']} "
            f"{plural('run', row['runs'])}{tie if pd.notna(row['p']) else ''})."
        )
    return lines


def states(found: Transitions) -> list[str]:
    """Return the path through hidden states, beside the null."""
    choice, path = found.state_choice, found.states
    if not len(choice):
        return []
    best = int(choice.loc[choice["chosen"], "states"].item())
    null = choice[choice["null_chosen"] > 0]
    range_ = f"{null['states'].min()} to {null['states'].max()}"
    lines = [
        f"A hidden Markov model describes the metrics with {best} {plural('state', best)} (BIC). "
        f"Random walks of the same shape get {range_}: the states describe the course of training "
        "and do not prove phases."
    ]
    first = path[path["run"] == path["run"].iloc[0]]
    starts = first[first["state"] != first["state"].shift()]
    told = [f"state {row.state} from step {row.step:,.0f}" for row in starts.itertuples()]
    lines.append(f"{path['run'].iloc[0]}: {', '.join(told[: 2 * MOST_NAMED])}.")
    lines += [
        f"State {row['state']} is a detour: {row['runs']} runs visit it, and make half of the "
        f"target's change a factor of {row['slower']:.2f} later than the {row['runs_without']} "
        f"others (q = {row['q']:.3f})."
        for row in found.state_summary[found.state_summary["detour"]].to_dict("records")
    ]
    return lines


def moved(found: Transitions) -> list[str]:
    """Return the datums, neurons and directions that moved more inside the window."""
    lines = []
    for kind, table in found.moved.groupby("kind"):
        clear = table[table["q"] <= ALPHA]
        lines.append(
            f"{len(clear)} {kind}s moved more inside the window than before and after it, beyond "
            f"windows of the same length elsewhere (q ≤ {ALPHA})."
        )
        for row in clear.head(MOST_NAMED).to_dict("records"):
            own = f"{row['unit']}:{row['number']}"
            name = own if kind == "neuron" else f"{kind} {row['number']}"
            of = "squared length in these directions" if kind == "direction" else "recorded shifts"
            text = f" ({row['text'][:60]})" if row["text"] else ""
            before, after = (
                f"{row[side]:.2%} {side}" if row[side] == row[side] else f"in no step {side}"
                for side in ("before", "after")
            )
            lines.append(
                f"{name}{text}: {row['inside']:.2%} of a step's {of} inside, {before}, {after} "
                f"(q = {row['q']:.3f})."
            )
    if lines:
        lines.append(
            "Moved is not taught: ontogeny retrain says what the model would be without some data."
        )
    return lines


def plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
