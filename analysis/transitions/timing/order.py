"""Which curve makes half of its change first, and does it happen when the loss falls?

A pair of curves is compared run by run, by the brackets of their halves in redrawn curves. One is
*before* the other if its bracket ends no later than the other's begins, in 97.5 % of the draws of
all runs; otherwise they are *together*. Two halves between the same checkpoints have no order.

Shapes: D draw (of all runs), W place of a window.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from analysis.measures.correlation import pearson, spearman
from analysis.measures.permutation import p_value
from analysis.transitions.curves import Curve
from analysis.transitions.runs.student import student_interval
from analysis.transitions.shape.half import ENDS, Half
from analysis.transitions.shape.shapes import adjusted
from analysis.transitions.shape.sudden import at_places
from analysis.transitions.tables import AFTER, BEFORE, COINCIDENCE, ORDER, TOGETHER, WARNINGS

Halves = Mapping[str, Half]
"""Half by name of the curve, of one run."""
SURE = 0.975
MOST_CURVES = 40
"""Curves whose pairs are compared; those with the largest change relative to noise."""
FEWEST_RUNS = 5
"""Runs for a correlation over runs."""
PERMUTATIONS = 999


def relation(pairs: Sequence[tuple[Half, Half]]) -> str:
    """Return whether the first curve of each pair is before or after the second, or together."""
    first = np.concatenate([a.upper_D <= b.lower_D for a, b in pairs])
    second = np.concatenate([b.upper_D <= a.lower_D for a, b in pairs])
    if first.mean() >= SURE:
        return BEFORE
    return AFTER if second.mean() >= SURE else TOGETHER


def mean_ends(value_R: Sequence[float], draw_RD: np.ndarray) -> tuple[float, float]:
    """Return a 95 % interval of the mean over runs of values that are known up to brackets.

    It is Student's interval over the runs, and holds the middle 95 % of the mean of the draws: runs
    with the same checkpoints agree no further than these are apart. One run has the draws alone.
    """
    low, high = np.quantile(draw_RD.mean(0), ENDS)
    least, most = student_interval(value_R)
    return float(np.fmin(low, least)), float(np.fmax(high, most))


def place(half: Half, rng: np.random.Generator) -> np.ndarray:
    """Return a place in the bracket of each draw, [D] log steps; every place is as likely."""
    return half.lower_D + rng.random(len(half.lower_D)) * (half.upper_D - half.lower_D)


def common(runs: Sequence[Halves], first: str, second: str) -> list[tuple[Half, Half]]:
    """Return the halves of two curves in the runs that have both."""
    return [(halves[first], halves[second]) for halves in runs if {first, second} <= halves.keys()]


def find_order(
    runs: Sequence[Halves], names: Mapping[str, tuple[str, str]], *, seed: int
) -> pd.DataFrame:
    """Return ``ORDER`` of all pairs, each once with the earlier curve first.

    ``names`` maps the names of the curves to metric and component.
    """
    rng = np.random.default_rng([seed, 1])
    rows: list[dict[str, Any]] = []
    for first, second in combinations(names, 2):
        pairs = common(runs, first, second)
        if not pairs:
            continue
        if np.mean([b.step - a.step for a, b in pairs]) < 0:
            first, second = second, first
            pairs = [(b, a) for a, b in pairs]
        logs = [np.log1p(b.step) - np.log1p(a.step) for a, b in pairs]
        low, high = mean_ends(logs, np.stack([place(b, rng) - place(a, rng) for a, b in pairs]))
        rows.append(
            {
                **dict(zip(("metric", "component"), names[first], strict=True)),
                **dict(zip(("other_metric", "other_component"), names[second], strict=True)),
                "runs": len(pairs),
                "factor": float(np.exp(np.mean(logs))),
                "low": float(np.exp(low)),
                "high": float(np.exp(high)),
                "lead_steps": float(np.mean([b.step - a.step for a, b in pairs])),
                "relation": relation(pairs),
            }
        )
    return pd.DataFrame(rows, columns=pd.Index(ORDER.names))


def find_warnings(
    runs: Sequence[Halves], names: Mapping[str, tuple[str, str]], target: str, *, seed: int
) -> pd.DataFrame:
    """Return ``WARNINGS``: by how many steps each curve makes half its change before the target.

    Half of a change is known only when it is complete: a lead says that the curve could have been
    watched, not that it sounded an alarm. Over five runs or more, the rank correlation of the two
    half steps says whether an early curve goes with an early target.
    """
    rng = np.random.default_rng([seed, 2])
    rows: list[dict[str, Any]] = []
    for name, (metric, component) in names.items():
        pairs = common(runs, name, target)
        if name == target or not pairs:
            continue
        lead_RD = np.stack([np.expm1(place(b, rng)) - np.expm1(place(a, rng)) for a, b in pairs])
        low, high = mean_ends([b.step - a.step for a, b in pairs], lead_RD)
        correlation, p = rank_correlation(pairs, rng)
        rows.append(
            {
                "metric": metric,
                "component": component,
                "target": target,
                "runs": len(pairs),
                "lead_steps": float(np.mean([b.step - a.step for a, b in pairs])),
                "lead_low": float(low),
                "lead_high": float(high),
                "earlier": bool(low > 0 and relation(pairs) == BEFORE),
                "correlation": correlation,
                "p": p,
            }
        )
    table = pd.DataFrame(rows, columns=pd.Index(WARNINGS.names))
    return table.sort_values("lead_steps", ascending=False, kind="stable", ignore_index=True)


def rank_correlation(
    pairs: Sequence[tuple[Half, Half]], rng: np.random.Generator
) -> tuple[float, float]:
    """Return Spearman's correlation of half steps over runs and its permutation p; NaN below
    ``FEWEST_RUNS`` runs."""
    if len(pairs) < FEWEST_RUNS:
        return np.nan, np.nan
    a, b = (np.array([pair[k].step for pair in pairs]) for k in (0, 1))
    found = spearman(a, b)
    if np.isnan(found):
        return np.nan, np.nan
    ranks_a, ranks_b = rankdata(a), rankdata(b)
    null = [pearson(rng.permutation(ranks_a), ranks_b) for _ in range(PERMUTATIONS)]
    return found, p_value(found, null)


def find_coincidence(
    run: str, curves: Sequence[Curve], halves: Halves, shapes: pd.DataFrame, loss: Curve
) -> pd.DataFrame:
    """Return ``COINCIDENCE``: how much of the loss's change each curve's steepest window holds.

    The null are windows of the same width at all other places of the log axis.
    """
    rows: list[dict[str, Any]] = []
    tested = {(row["metric"], row["component"]): row for row in shapes.to_dict("records")}
    for curve in curves:
        if curve.name not in halves or curve.name == loss.name or loss.name not in halves:
            continue
        row = tested[curve.metric, curve.component]
        window = (float(np.log1p(row["window_first"])), float(np.log1p(row["window_end"])))
        share, null_W = loss_in(loss, *window)
        rows.append(
            {
                "run": run,
                "metric": curve.metric,
                "component": curve.component,
                "loss": loss.name,
                "loss_share": share,
                "null_share": float(np.median(null_W)),
                "p": float(np.mean(null_W >= share)),
                "relation": relation([(halves[curve.name], halves[loss.name])]),
            }
        )
    table = pd.DataFrame(rows, columns=pd.Index(COINCIDENCE.names))
    return table.assign(q=adjusted(table["p"].to_numpy(np.float64)))


def loss_in(loss: Curve, start: float, end: float) -> tuple[float, np.ndarray]:
    """Return the share of the loss's change in a window of log steps, and in all equal windows."""
    width = min(end - start, float(np.ptp(loss.u_K)))
    start_W = np.linspace(loss.u_K[0], loss.u_K[-1] - width, 200)
    own_W = np.append(start_W, np.clip(start, loss.u_K[0], loss.u_K[-1] - width))
    ends = (at_places(loss.u_K, loss.value_K[None], at)[0] for at in (own_W, own_W + width))
    share_W = np.abs(np.subtract(*ends)) / loss.change
    return float(share_W[-1]), share_W
