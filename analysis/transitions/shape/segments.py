"""Change points: the curve as straight lines over log steps, cut where BIC says.

Cuts are found by PELT (Killick et al. 2012, ``ruptures``), which minimises Σ squared residuals in
units of the noise, plus a penalty for each cut. BIC's penalty is ln K for each parameter. A cut
adds an offset, a slope and a place. In the modified BIC of Zhang and Siegmund (2007) a place counts
twice, because it is searched for.

Shapes: D draw, K point, C place of a cut.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.transitions.curves import Curve
from capture.errors import ConfigError

PARAMETERS = 4
MIN_SEGMENT = 3
"""Points of a segment: a line through two fits exactly."""


def needs(package: str) -> ConfigError:
    """Return the error of a missing package of the extra ``dynamics``."""
    remedy = "Install it: pip install 'ontogeny[dynamics]'"
    return ConfigError(package, "is not installed, and transitions need it", remedy)


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums from the first point on of the products that a line's residuals are made of."""

    total_DKS: np.ndarray
    """Cumulative sums of w, wu, wy, wuu, wuy and wyy, [D, K + 1, 6]."""

    @classmethod
    def of(cls, u_K: np.ndarray, value_DK: np.ndarray, noise_K: np.ndarray) -> "Sums":
        """Return the sums with weights 1 / noise²."""
        w = np.broadcast_to(noise_K**-2.0, value_DK.shape)
        u, y = u_K - u_K.mean(), value_DK - value_DK.mean(1, keepdims=True)
        parts = [w, w * u, w * y, w * u * u, w * u * y, w * y * y]
        total_DKS = np.zeros((len(value_DK), len(u_K) + 1, 6))
        total_DKS[:, 1:] = np.cumsum(np.stack(parts, -1), 1)
        return cls(total_DKS)

    def residual(self, start: Any, end: Any) -> np.ndarray:
        """Return Σ squared residuals of the line through points start to end − 1, [D] or [D, C]."""
        s, su, sy, suu, suy, syy = np.moveaxis(
            self.total_DKS[:, end] - self.total_DKS[:, start], -1, 0
        )
        spread = np.maximum(suu - su * su / s, 1e-12)
        found = syy - sy * sy / s - (suy - su * sy / s) ** 2 / spread
        return np.maximum(found, 0)

    def best_cut(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best cut between two places and the residual with it, both [D]."""
        cut_C = np.arange(start + MIN_SEGMENT, end - MIN_SEGMENT + 1)
        left = self.residual(np.full_like(cut_C, start), cut_C)
        both_DC = left + self.residual(cut_C, np.full_like(cut_C, end))
        best_D = both_DC.argmin(1)
        return cut_C[best_D], np.take_along_axis(both_DC, best_D[:, None], 1)[:, 0]


def find_cuts(curve: Curve) -> list[int]:
    """Return the first point after each change point, ascending; raise ``ConfigError`` if
    ruptures is not installed."""
    try:
        import ruptures
        from ruptures.base import BaseCost
    except ImportError as error:
        raise needs("ruptures") from error

    class LineCost(BaseCost):
        """Residual of a line over log steps, in units of the noise."""

        model = "line"
        min_size = MIN_SEGMENT

        def fit(self, signal: np.ndarray) -> "LineCost":
            self.signal = signal
            self.sums = Sums.of(curve.u_K, signal.T, curve.noise_K)
            return self

        def error(self, start: int, end: int) -> float:
            return float(self.sums.residual(start, end)[0])

    search = ruptures.Pelt(custom_cost=LineCost(), min_size=MIN_SEGMENT, jump=1)
    penalty = PARAMETERS * np.log(len(curve.u_K))
    return search.fit_predict(curve.value_K[:, None], pen=penalty)[:-1]


def gains(curve: Curve, cuts: list[int]) -> np.ndarray:
    """Return what each cut explains between its neighbours, [C]: 1 − residual with the cut /
    residual of one line."""
    sums = Sums.of(curve.u_K, curve.value_K[None], curve.noise_K)
    ends = [0, *cuts, len(curve.u_K)]
    found = []
    for a, b, c in zip(ends, ends[1:], ends[2:], strict=False):
        whole = sums.residual(a, c)[0]
        parts = sums.residual(a, b)[0] + sums.residual(b, c)[0]
        found.append(1 - parts / whole if whole > 0 else 0.0)
    return np.array(found)


def first_gains(u_K: np.ndarray, value_DK: np.ndarray, noise_K: np.ndarray) -> np.ndarray:
    """Return the gain of the best single cut of each curve, [D]; the null of ``gains``."""
    sums = Sums.of(u_K, value_DK, noise_K)
    whole_D = sums.residual(0, len(u_K))
    _, with_D = sums.best_cut(0, len(u_K))
    return np.where(whole_D > 0, 1 - with_D / np.maximum(whole_D, 1e-300), 0.0)


def cut_draws(curve: Curve, cuts: list[int], place: int, draws: int, rng: np.random.Generator):
    """Return bootstrap draws of one cut, given its neighbours, [D] points.

    The two fitted lines get new noise (parametric residual bootstrap) and are cut again.
    """
    start, end = [0, *cuts][place], [*cuts, len(curve.u_K)][place + 1]
    own = slice(start, end)
    u_K, noise_K = curve.u_K[own], curve.noise_K[own]
    at = cuts[place] - start
    fitted_K = np.concatenate(
        [
            line_fit(u_K[part], curve.value_K[own][part], noise_K[part])
            for part in (slice(at), slice(at, None))
        ]
    )
    drawn_DK = fitted_K + noise_K * rng.standard_normal((draws, len(u_K)))
    cut_D, _ = Sums.of(u_K, drawn_DK, noise_K).best_cut(0, len(u_K))
    return start + cut_D


def line_fit(u_K: np.ndarray, value_K: np.ndarray, noise_K: np.ndarray) -> np.ndarray:
    """Return the weighted least-squares line at its points, [K]."""
    slope, offset = np.polyfit(u_K - u_K.mean(), value_K, 1, w=1 / noise_K)
    return offset + slope * (u_K - u_K.mean())
