"""Is a change sudden? The share of it within one doubling of the step, against two kinds of null.

share = the largest |change| while 1 + step doubles / the range of the curve.

A window on the log axis makes the measure independent of the unit of steps. While the step doubles,
exponential decay makes at most 25 % of its change, t^(-1/2) at most 29 %, a stage of a deep linear
network that starts from 1e-3 about 83 % (Saxe et al. 2014, logistic in step), and a jump all of it.
Induction heads formed within about one doubling (Olsson et al. 2022). A change is called sudden
only if its share is at least a half and lies above 95 % of both nulls:

- smooth: the power law a + b (1 + t / c)^(-k) that fits best, with the curve's own noise;
- walk: Brownian motion over log steps. The share has no scale, so this null has no parameter.

Shapes: D draw, K point, G candidate of the fit.
"""

import numpy as np

from analysis.transitions.curves import Curve

WIDTH = float(np.log(2))
"""Width of a window in natural log of 1 + step: a doubling."""
LEAST = 0.5
"""Smallest share of a sudden change."""
MOST_OF_IT = 0.8
POWERS = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0])


def window_changes(u_K: np.ndarray, value_DK: np.ndarray) -> np.ndarray:
    """Return |change| over the window that starts at each point, then that ends at each, [D, 2K].

    Values between points are interpolated. A window that would leave the axis is cut off there.
    """
    after = at_places(u_K, value_DK, np.minimum(u_K + WIDTH, u_K[-1]))
    before = at_places(u_K, value_DK, np.maximum(u_K - WIDTH, u_K[0]))
    return np.abs(np.concatenate([after - value_DK, value_DK - before], 1))


def at_places(u_K: np.ndarray, value_DK: np.ndarray, place_P: np.ndarray) -> np.ndarray:
    """Interpolate each curve at the same places on the log axis, [D, P]."""
    right = np.clip(np.searchsorted(u_K, place_P), 1, len(u_K) - 1)
    share = (place_P - u_K[right - 1]) / (u_K[right] - u_K[right - 1])
    return value_DK[:, right - 1] * (1 - share) + value_DK[:, right] * share


def shares(u_K: np.ndarray, value_DK: np.ndarray) -> np.ndarray:
    """Return the largest share of each curve's range within one window, [D]; 0 if it is flat."""
    range_D = np.ptp(value_DK, axis=1)
    largest_D = window_changes(u_K, value_DK).max(1)
    return np.divide(largest_D, range_D, out=np.zeros_like(range_D), where=range_D > 0)


def steepest(curve: Curve) -> tuple[float, float]:
    """Return the ends of the shortest stretch between two points with most of the largest change
    within a window (``MOST_OF_IT``), in steps."""
    wanted = MOST_OF_IT * window_changes(curve.u_K, curve.value_K[None]).max()
    length_KK = curve.u_K[None, :] - curve.u_K[:, None]
    change_KK = np.abs(curve.value_K[None, :] - curve.value_K[:, None])
    length_KK = np.where((length_KK > 0) & (change_KK >= wanted), length_KK, np.inf)
    start, end = np.unravel_index(length_KK.argmin(), length_KK.shape)
    return float(curve.step_K[start]), float(curve.step_K[end])


def share_at(curve: Curve, u: float) -> float:
    """Return the largest share of the change within a window that holds a place."""
    start_P = np.clip(u - WIDTH * np.linspace(0, 1, 9), curve.u_K[0], curve.u_K[-1])
    end_P = np.clip(start_P + WIDTH, curve.u_K[0], curve.u_K[-1])
    value = curve.value_K[None]
    found = at_places(curve.u_K, value, end_P) - at_places(curve.u_K, value, start_P)
    return float(np.abs(found).max() / curve.change)


def widest_gap_share(curve: Curve) -> float:
    """Return the largest share of the change between two points that are further apart than a
    window; 0 if there are none. It is not known how sudden that change was."""
    wide = np.diff(curve.u_K) > WIDTH
    change = np.abs(np.diff(curve.value_K))[wide]
    return float(change.max() / curve.change) if wide.any() else 0.0


# --- nulls ----------------------------------------------------------------------------------------


def smooth_fit(curve: Curve) -> np.ndarray:
    """Return the best a + b (1 + t / c)^(-k) at the curve's points, t = 1 + step, [K].

    c and k come from a grid; a and b are solved for.
    """
    t_K = 1 + curve.step_K
    scale_G, power_G = np.meshgrid(np.geomspace(t_K[0] / 2, 2 * t_K[-1], 25), POWERS)
    base_GK = (1 + t_K / scale_G.reshape(-1, 1)) ** -power_G.reshape(-1, 1)
    w_K = curve.noise_K**-2.0
    w_K = w_K / w_K.sum()
    base_GK = base_GK - (base_GK @ w_K)[:, None]
    mean = float(curve.value_K @ w_K)
    y_K = curve.value_K - mean
    size_G = (base_GK**2) @ w_K
    slope_G = (base_GK * y_K) @ w_K / np.maximum(size_G, 1e-300)
    residual_G = ((y_K - slope_G[:, None] * base_GK) ** 2) @ w_K
    best = int(residual_G.argmin())
    return mean + slope_G[best] * base_GK[best]


def smooth_curves(curve: Curve, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return power laws with the curve's noise, [D, K]."""
    return smooth_fit(curve) + curve.noise_K * rng.standard_normal((draws, len(curve.u_K)))


def walks(u_K: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return Brownian paths over log steps, [D, K]."""
    steps = rng.standard_normal((draws, len(u_K) - 1)) * np.sqrt(np.diff(u_K))
    return np.concatenate([np.zeros((draws, 1)), np.cumsum(steps, 1)], 1)
