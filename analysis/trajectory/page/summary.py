"""A trajectory in sentences: from where to where each curve went, and by when.

Shapes: M checkpoint.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.report.drawing.markup import significant
from analysis.trajectory.tables import Trajectory, is_constant

ALL_COMPONENTS = 4
"""Most components of a metric that the text describes; of more, only the one that changed most."""
CROSSINGS = {"probe": (0.7, 0.9)}
"""Metric → values whose first crossing the text names."""
Z = 1.96
"""Normal quantile of a 95 % interval."""


@dataclass(frozen=True)
class Curve:
    """One component of one metric, over the checkpoints that have a value."""

    component: str
    step_M: np.ndarray
    value_M: np.ndarray
    error_M: np.ndarray
    """Standard errors; NaN where the value is no mean."""
    null: float
    """Null value at the last checkpoint."""

    @property
    def range(self) -> float:
        return float(self.value_M.max() - self.value_M.min())

    @property
    def moves(self) -> bool:
        """Whether it changes by more than rounding does."""
        return not is_constant(self.value_M)


def curves(found: Trajectory, metric: str) -> list[Curve]:
    """Return the curves of a metric in the order of the table; values that are finite."""
    rows = found.trajectory
    rows = rows[(rows["metric"] == metric) & np.isfinite(rows["value"])]
    return [
        Curve(
            str(component),
            own["step"].to_numpy(),
            own["value"].to_numpy(),
            own["standard_error"].to_numpy(),
            float(own["null"].iloc[-1]),
        )
        for component, own in rows.groupby("component", sort=False)
    ]


def summarise(found: Trajectory) -> list[str]:
    """Return sentences on each metric: of the whole model, or else of its components."""
    sentences = []
    for row in found.metrics.to_dict("records"):
        measured = curves(found, row["metric"])
        every = [curve for curve in measured if curve.moves]
        if measured and not every:
            sentences.append(f"{row['metric']}: constant.")
        shown = foremost(every, ALL_COMPONENTS, 1)
        sentences += [sentence(row, curve) for curve in shown]
        if others := len(every) - len(shown):
            sentences[-1] += f" {others} components more."
    return sentences + not_finite(found)


def not_finite(found: Trajectory) -> list[str]:
    """Return how many values of each metric are not finite, and thus in no curve."""
    bad = found.trajectory.assign(bad=~np.isfinite(found.trajectory["value"]))
    counts = bad.groupby("metric", sort=False)["bad"].agg(["sum", "size"])
    return [
        f"{metric}: {count} of {size} values are not finite and left out."
        for metric, count, size in counts.itertuples()
        if count
    ]


def foremost(every: list[Curve], most: int, fewer: int) -> list[Curve]:
    """Return the curve of the whole model, if there is one, or else all components.

    Of more than ``most`` components, the ``fewer`` that changed most.
    """
    whole = [curve for curve in every if not curve.component]
    return whole or (every if len(every) <= most else most_changed(every, fewer))


def most_changed(every: list[Curve], count: int) -> list[Curve]:
    return sorted(every, key=lambda curve: -curve.range)[:count]


def sentence(row: dict, curve: Curve) -> str:
    """Say where a curve began and ended, and its extremes in between or else when half was done."""
    name = f"{row['metric']} {curve.component}".strip()
    first, last = curve.value_M[0], curve.value_M[-1]
    unit = f" {row['unit']}" if row["unit"] else ""
    text = f"{name}: {significant(first)} to {significant(last)}{unit}"
    if significant(first) == significant(last):
        side = "above" if last > first else "below"
        text = f"{name}: {significant(first)}{unit}"
        text += f", at the end {significant(abs(last - first))} {side} it" if last != first else ""
    if row["null"] and math.isfinite(curve.null):
        text += f"; null {significant(curve.null)}"
    turned = False
    for extreme, noun in ((curve.value_M.argmin(), "lowest"), (curve.value_M.argmax(), "highest")):
        inside = curve.value_M[extreme]
        beyond = min(abs(inside - first), abs(inside - last))
        if beyond > 0.1 * curve.range and 0 < extreme < len(curve.value_M) - 1:
            text += f"; {noun} {significant(inside)} at step {curve.step_M[extreme]:,}"
            turned = True
    for share in CROSSINGS.get(row["metric"], ()):
        if (above_M := curve.value_M > share).any():
            step = curve.step_M[int(above_M.argmax())]
            text += f"; above {100 * share:.0f} % from step {step:,}"
    if within_error(curve):
        return f"{text}; the ends differ by less than their error."
    before, after = half_way(curve)
    if after > before and not turned:
        text += f"; half of the change came between steps {before:,} and {after:,}"
    return f"{text}."


def within_error(curve: Curve) -> bool:
    """Whether the last value lies within the 95 % interval of the difference from the first."""
    error = math.hypot(curve.error_M[0], curve.error_M[-1])
    return math.isfinite(error) and abs(curve.value_M[-1] - curve.value_M[0]) <= Z * error


def half_way(curve: Curve) -> tuple[int, int]:
    """Return the checkpoints between which the curve first passed half of its whole change."""
    change_M = (curve.value_M - curve.value_M[0]) * np.sign(curve.value_M[-1] - curve.value_M[0])
    passed = int(np.argmax(change_M >= change_M[-1] / 2)) if change_M[-1] > 0 else 0
    return int(curve.step_M[max(passed - 1, 0)]), int(curve.step_M[passed])


def omitted(metrics: pd.DataFrame) -> list[str]:
    """Return a line on each reason, with the metrics that have no values for it."""
    rows = metrics[metrics["omitted"] != ""]
    return [
        f"{', '.join(own)} ({reason})"
        for reason, own in rows.groupby("omitted", sort=False)["metric"]
    ]
