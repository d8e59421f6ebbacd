"""Test every curve of one run: its change points, how sudden it is, and where its half lies.

Shapes: D draw, K point, C cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.measures.multiple_testing import benjamini_hochberg
from analysis.measures.permutation import p_value
from analysis.transitions.curves import MIN_POINTS, Curve
from analysis.transitions.shape import segments, sudden
from analysis.transitions.shape.half import ENDS, Half, find_half
from analysis.transitions.tables import (
    CHANGES,
    CONSTANT,
    CURVES,
    GRADUAL,
    SHORT,
    STEEP,
    SUDDEN,
    UNCHANGED,
    UNRESOLVED,
)

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Shapes:
    """The tests of the curves of one run."""

    curves: pd.DataFrame
    """``CURVES``"""
    changes: pd.DataFrame
    """``CHANGES``"""
    halves: dict[str, Half]
    """Half of each curve that changes, by name."""


def shapes_of(
    run: str, curves: Sequence[Curve], *, draws: int, seed: int, cuts: bool = True
) -> Shapes:
    """Test the curves of one run; each curve's draws follow from the seed and its name alone.

    Without ``cuts`` no change points are looked for, which take most of the time.
    """
    rows: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    halves: dict[str, Half] = {}
    for curve in curves:
        own = {"run": run, "metric": curve.metric, "component": curve.component}
        row = own | {"points": len(curve.u_K), "change": curve.change, "rises": False}
        row |= {"noise": float(np.median(curve.noise_K)), "verdict": verdict_before(curve)}
        if not row["verdict"]:
            rng = np.random.default_rng([seed, *curve.name.encode()])
            nulls = Nulls.of(curve, draws, rng)
            half = halves[curve.name] = find_half(curve, draws, rng)
            row |= nulls.test_share(curve) | half_columns(half)
            changes += [own | change for change in nulls.cuts(curve, draws, rng)] if cuts else []
        rows.append(row)
    table = judged(pd.DataFrame(rows, columns=pd.Index(CURVES.names)), curves)
    return Shapes(table, pd.DataFrame(changes, columns=pd.Index(CHANGES.names)), halves)


def verdict_before(curve: Curve) -> str:
    """Return why a curve is not tested; "" if it is."""
    if len(curve.u_K) < MIN_POINTS:
        return SHORT
    if curve.constant:
        return CONSTANT
    return "" if curve.changes else UNCHANGED


def half_columns(half: Half) -> dict[str, Any]:
    ends = {"half_step": half.step, "half_low": half.low, "half_high": half.high}
    return ends | {"rises": half.rises}


@dataclass(frozen=True, eq=False)
class Nulls:
    """Null curves on the grid of one curve."""

    smooth_DK: np.ndarray
    walk_DK: np.ndarray

    @classmethod
    def of(cls, curve: Curve, draws: int, rng: np.random.Generator) -> "Nulls":
        smooth_DK = sudden.smooth_curves(curve, draws, rng)
        return cls(smooth_DK, sudden.walks(curve.u_K, draws, rng))

    def test_share(self, curve: Curve) -> dict[str, Any]:
        """Return the columns of ``CURVES`` about the largest share of the change."""
        found = float(sudden.shares(curve.u_K, curve.value_K[None])[0])
        first, end = sudden.steepest(curve)
        p_smooth, p_walk = (
            p_value(found, sudden.shares(curve.u_K, null_DK))
            for null_DK in (self.smooth_DK, self.walk_DK)
        )
        ends = {"window_first": first, "window_end": end}
        return {"share": found, "p_smooth": p_smooth, "p_walk": p_walk} | ends

    def cuts(self, curve: Curve, draws: int, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Return the columns of ``CHANGES`` about each cut."""
        cuts = segments.find_cuts(curve)
        nulls = [
            segments.first_gains(curve.u_K, null_DK, curve.noise_K)
            for null_DK in (self.smooth_DK, self.walk_DK)
        ]
        found = []
        for place, gain in enumerate(segments.gains(curve, cuts)):
            drawn_D = segments.cut_draws(curve, cuts, place, draws, rng)
            low, high = (int(at) for at in np.quantile(drawn_D, ENDS, method="nearest"))
            middle = (curve.u_K[cuts[place] - 1] + curve.u_K[cuts[place]]) / 2
            p_smooth, p_walk = (p_value(gain, null_D) for null_D in nulls)
            found.append(
                {
                    "step": float(np.expm1(middle)),
                    "low": curve.step_K[low - 1],
                    "high": curve.step_K[high],
                    "share": sudden.share_at(curve, middle),
                    "gain": gain,
                    "p_smooth": p_smooth,
                    "p_walk": p_walk,
                }
            )
        return found


def judged(table: pd.DataFrame, curves: Sequence[Curve]) -> pd.DataFrame:
    """Return ``CURVES`` with q and verdicts; false discoveries are controlled over the run.

    q adjusts the larger p for all curves of the run (Benjamini and Hochberg 1995).
    """
    table = table.copy()
    p = table[["p_smooth", "p_walk"]].astype(np.float64)
    table["q"] = adjusted(p.max(axis=1).to_numpy())
    q_smooth = adjusted(p["p_smooth"].to_numpy())
    verdicts = []
    for row, q, curve in zip(table.to_dict("records"), q_smooth, curves, strict=True):
        verdicts.append(row["verdict"] or verdict(row, q, sudden.widest_gap_share(curve)))
    return table.assign(verdict=verdicts)


def adjusted(p_K: np.ndarray) -> np.ndarray:
    """Return q of the tests that were made; NaN for the others."""
    found_K = np.full(len(p_K), np.nan)
    made = ~np.isnan(p_K)
    if made.any():
        found_K[made] = benjamini_hochberg(p_K[made])
    return found_K


def verdict(row: dict[Any, Any], q_smooth: float, gap_share: float) -> str:
    """Return what a curve's largest share says; see ``sudden`` for the threshold."""
    if row["share"] >= sudden.LEAST and row["q"] <= ALPHA:
        return SUDDEN
    if gap_share >= sudden.LEAST and gap_share > row["share"]:
        return UNRESOLVED
    return STEEP if row["share"] >= sudden.LEAST and q_smooth <= ALPHA else GRADUAL
