"""The step at which a curve has made half of its change, with an interval.

The change goes from the first value to the value that is furthest from it. With noise a curve
crosses the half several times: the bracket goes from the last point before the first crossing to
the first point after the last one. An interval spans brackets of redrawn curves, so it is never
narrower than the distance between checkpoints.

Shapes: D draw, K point.
"""

from dataclasses import dataclass

import numpy as np

from analysis.transitions.curves import Curve

ENDS = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class Half:
    """Where a curve passes its half."""

    step: float
    """Interpolated over log steps; the middle of first and last crossing."""
    low: float
    high: float
    """95 % interval in steps."""
    rises: bool
    lower_D: np.ndarray
    upper_D: np.ndarray
    """Bracket of each redrawn curve, in log steps."""


def find_half(curve: Curve, draws: int, rng: np.random.Generator) -> Half:
    """Return the half of a curve that changes; noise is redrawn ``draws`` times."""
    away_K = np.abs(curve.value_K - curve.value_K[0])
    end = int(away_K.argmax())
    total = curve.value_K[end] - curve.value_K[0]
    share_K = (curve.value_K[: end + 1] - curve.value_K[0]) / total
    noise_K = curve.error_or_noise_K[: end + 1] / abs(total)
    drawn_DK = share_K + noise_K * rng.standard_normal((draws, end + 1))
    drawn_DK[:, 0], drawn_DK[:, -1] = 0, 1  # the change is from here to there
    lower_D, upper_D = brackets(curve.u_K[: end + 1], drawn_DK)
    own_lower, own_upper = brackets(curve.u_K[: end + 1], share_K[None])
    low = min(np.quantile(lower_D, ENDS[0]), own_lower[0])
    high = max(np.quantile(upper_D, ENDS[1]), own_upper[0])
    middle = crossing(curve.u_K[: end + 1], share_K)
    low, middle, high = (float(np.expm1(u)) for u in (low, middle, high))
    return Half(middle, low, high, bool(total > 0), lower_D, upper_D)


def brackets(u_K: np.ndarray, share_DK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points around all crossings of one half, on the log axis, both [D]."""
    over_DK = share_DK >= 0.5
    first_D = over_DK.argmax(1)
    last_under_D = len(u_K) - 1 - (~over_DK)[:, ::-1].argmax(1)
    return u_K[np.maximum(first_D - 1, 0)], u_K[np.minimum(last_under_D + 1, len(u_K) - 1)]


def crossing(u_K: np.ndarray, share_K: np.ndarray) -> float:
    """Return the middle of the first and the last crossing of one half, interpolated."""
    rises = np.flatnonzero((share_K[:-1] < 0.5) & (share_K[1:] >= 0.5))
    ends = []
    for k in (rises[0], rises[-1]):
        part = (0.5 - share_K[k]) / (share_K[k + 1] - share_K[k])
        ends.append(u_K[k] + part * (u_K[k + 1] - u_K[k]))
    return float(np.mean(ends))
