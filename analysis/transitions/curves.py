"""Curves of metrics over training, on an axis of log steps.

The axis is u = ln(1 + step), which holds the initial model (step 0). A curve with many points (the
training loss of every step) is averaged in bins of equal width on this axis.

Shapes: K point of a curve.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.trajectory.tables import is_constant
from capture.errors import ConfigError

MIN_POINTS = 8
"""A curve with fewer points is not tested for change points."""
MAX_POINTS = 120
"""A curve with more points is averaged in bins."""
COLUMNS = ["step", "metric", "component", "value", "n", "standard_error"]
FLAT = 2.0
"""A curve whose variance is below this multiple of its jitter's has not changed: for white noise
the ratio is 1 (von Neumann 1941)."""
ERRORS = 3.0
"""A curve whose range is below this many standard errors over datums has not changed either: with
other datums it might go another way."""
FLOOR = 1e-3
"""Smallest noise, relative to the range of a curve: below it, no curve is known to be smooth."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One metric of one component in one run."""

    metric: str
    component: str
    step_K: np.ndarray
    """Ascending; means of the steps in a bin."""
    value_K: np.ndarray
    error_K: np.ndarray
    """Standard error of each value over held-out datums; 0 if it is not known."""
    count_K: np.ndarray
    """Values averaged in each point; the noise falls with its root."""

    @property
    def name(self) -> str:
        return f"{self.metric}:{self.component}" if self.component else self.metric

    @cached_property
    def u_K(self) -> np.ndarray:
        """ln(1 + step)."""
        return np.log1p(self.step_K)

    @cached_property
    def change(self) -> float:
        """Largest less smallest value."""
        return float(np.ptp(self.value_K))

    @cached_property
    def noise_K(self) -> np.ndarray:
        """Standard deviation of the jitter from point to point."""
        sigma = jitter(self.u_K, self.value_K, self.count_K)
        return np.maximum(sigma / np.sqrt(self.count_K), FLOOR * self.change)

    @cached_property
    def error_or_noise_K(self) -> np.ndarray:
        """The larger of the jitter and the standard error over datums."""
        return np.maximum(self.noise_K, self.error_K)

    @property
    def constant(self) -> bool:
        """Whether the values differ by no more than rounding."""
        return is_constant(self.value_K)

    @property
    def changes(self) -> bool:
        """Whether the curve varies more than its jitter, and beyond its error over datums."""
        if self.constant or self.change < ERRORS * float(np.median(self.error_K)):
            return False
        mean = np.average(self.value_K, weights=self.noise_K**-2.0)
        return float(np.mean(((self.value_K - mean) / self.noise_K) ** 2)) >= FLAT


def jitter(u_K: np.ndarray, value_K: np.ndarray, count_K: np.ndarray) -> float:
    """Return the standard deviation of the noise of a single value (count 1).

    Each point is compared with the line through its two neighbours; the median of the absolute
    differences, in units of what white noise gives them, is robust to a few jumps.
    """
    if len(u_K) < 4:
        return 0.0
    left = (u_K[2:] - u_K[1:-1]) / (u_K[2:] - u_K[:-2])
    away = value_K[1:-1] - left * value_K[:-2] - (1 - left) * value_K[2:]
    variance = 1 / count_K[1:-1] + left**2 / count_K[:-2] + (1 - left) ** 2 / count_K[2:]
    return float(1.4826 * np.median(np.abs(away) / np.sqrt(variance)))


def require_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table of curves; raise ``ConfigError`` if it lacks one of ``COLUMNS``."""
    lacking = [name for name in COLUMNS if name not in frame]
    if lacking:
        problem = f"have no column {lacking[0]}"
        raise ConfigError("curves", problem, f"Wanted: {', '.join(COLUMNS)}")
    return frame[COLUMNS]


def curves_of(frame: pd.DataFrame) -> list[Curve]:
    """Return the curves of a table with ``COLUMNS``, in the order of their first rows.

    Values that are not finite are left out.
    """
    kept = frame[np.isfinite(frame["value"].to_numpy(np.float64))]
    groups = kept.groupby(["metric", "component"], sort=False, observed=True)
    return [curve_of(str(metric), str(part), rows) for (metric, part), rows in groups]


def curve_of(metric: str, component: str, rows: pd.DataFrame) -> Curve:
    """Return one curve; several values of the same step are averaged."""
    rows = rows.sort_values("step", kind="stable")
    step, value = (rows[name].to_numpy(np.float64) for name in ("step", "value"))
    error = np.nan_to_num(rows["standard_error"].to_numpy(np.float64))
    group = np.unique(step, return_inverse=True)[1]
    if group[-1] >= MAX_POINTS:
        group = binned(np.log1p(step))
    count_K = np.bincount(group).astype(np.float64)
    step_K, value_K = (np.bincount(group, each) / count_K for each in (step, value))
    error_K = np.sqrt(np.bincount(group, error**2)) / count_K
    return Curve(metric, component, step_K, value_K, error_K, count_K)


def binned(u: np.ndarray) -> np.ndarray:
    """Return the bin of each ascending place on the log axis, numbered without gaps."""
    width = (u[-1] - u[0]) / MAX_POINTS
    bins = np.floor((u - u[0]) / width).astype(np.int64)
    return np.unique(bins, return_inverse=True)[1]
