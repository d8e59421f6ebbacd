"""Turning points of the principal components: in sentences, as a table, and on the path.

Shapes: M checkpoint.
"""

import math

import numpy as np
from markupsafe import Markup

from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import Column, data_table, integer, section, significant
from analysis.report.drawing.plots import Series, line_chart
from analysis.trajectory.tables import Trajectory

CLAIMED = 0.05
"""Largest p of a turn that is called a turning point."""
PATHS = ("loss_components", "logit_components")


def turn_sentences(found: Trajectory) -> list[str]:
    """Return a sentence on each turning point, or on their lack."""
    measured = set(found.metrics["metric"])
    return [line for metric in PATHS if metric in measured for line in sentences_of(found, metric)]


def sentences_of(found: Trajectory, metric: str) -> list[str]:
    turns = found.turns[found.turns["metric"] == metric].to_dict("records")
    if not turns:
        return [f"{metric}: no turning point; the path has no ends that stand clear of its jitter."]
    claimed = [turn for turn in turns if turn["p"] <= CLAIMED]
    if not claimed:
        (turn, *_) = turns
        return [
            f"{metric}: no turning point; the sharpest turn, {turn['angle']:.0f}° at step "
            f"{turn['step']:,}, is not sharper than those of the same steps in random order "
            f"({turn['null_angle']:.0f}° on average, p {significant(turn['p'])})."
        ]
    return [
        f"{metric}: the path of the first two turns by {turn['angle']:.0f}° at step "
        f"{turn['step']:,}{interval(turn)}; the same steps in random order turn by "
        f"{turn['null_angle']:.0f}° at their sharpest on average (p {significant(turn['p'])})."
        for turn in sorted(claimed, key=lambda turn: turn["step"])
    ]


def interval(turn: dict) -> str:
    if not math.isfinite(turn["low"]):
        return ""
    return f" (95 % interval over datums {turn['low']:,.0f} to {turn['high']:,.0f})"


def turns_section(found: Trajectory) -> list[Markup]:
    """Return the paths with their turning points, and the table of all turns."""
    charts = [path_chart(found, metric) for metric in PATHS if len(found.series(metric, "PC1"))]
    if not charts:
        return []
    columns = [
        Column("path", lambda turn: turn["metric"], "what the components are of"),
        Column("step", lambda turn: integer(turn["step"]), "checkpoint at the turn", True),
        Column("angle", lambda turn: f"{turn['angle']:.0f}°", "0° is straight on", True),
        Column("null", lambda turn: f"{turn['null_angle']:.0f}°", "same steps, random order", True),
        Column("p", lambda turn: significant(turn["p"]), "nulls that turn as sharply", True),
    ]
    table = data_table("Turns of the paths", columns, found.turns.to_dict("records"))
    return [section("Turning points", *charts, table)]


def path_chart(found: Trajectory, metric: str) -> Markup:
    """Draw the second component against the first; turning points are marked."""
    first, second = (found.series(metric, f"PC{number}") for number in (1, 2))
    x_M, y_M, step_M = first["value"].to_numpy(), second["value"].to_numpy(), first["step"]
    turns = found.turns[(found.turns["metric"] == metric) & (found.turns["p"] <= CLAIMED)]
    ends = [(int(step_M.iloc[0]), "start"), (int(step_M.iloc[-1]), "end")]
    marked = [*ends, *((int(step), "turn") for step in turns["step"])]
    series = [Series("", x_M, y_M, 1)]
    for step, word in marked:
        at_M = np.flatnonzero(step_M == step)
        series.append(Series(f"{word}, step {step:,}", x_M[at_M], y_M[at_M], 2, "points"))
    return line_chart(Axes(title=f"Path of {metric}", x="PC1", y="PC2", right=150), series)
