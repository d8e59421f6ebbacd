"""Scales from numbers to pixels, round ticks and their labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from values to pixels."""

    low: float
    high: float
    start: float
    """Pixel of ``low``."""
    end: float
    """Pixel of ``high``."""
    log: bool = False
    counts: bool = False
    """Logarithm of 1 + value, for counts that include 0 (steps of training)."""

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        """Pixels of the values, in their shape."""
        low, high = self.transform(self.low), self.transform(self.high)
        share = (self.transform(values) - low) / ((high - low) or 1)
        return self.start + share * (self.end - self.start)

    def transform(self, values: np.ndarray | float) -> np.ndarray:
        if self.counts:
            return np.log10(1 + np.asarray(values, np.float64))
        return np.log10(values) if self.log else np.asarray(values, np.float64)

    @property
    def ticks(self) -> list[float]:
        if self.counts:
            return count_ticks(self.low, self.high)
        return (power_ticks if self.log else round_ticks)(self.low, self.high)

    def label(self, value: float) -> str:
        """The text beside a tick."""
        if self.counts:
            return f"{value:,.0f}"
        if self.log:
            return f"10{str(round(math.log10(value))).translate(SUPERSCRIPTS)}"
        return tick_label(value, tick_spacing(self.low, self.high))


def tick_spacing(low: float, high: float, max_steps: int = 5) -> float:
    """The smallest of 1, 2, 5 × 10ⁿ that divides the interval into at most ``max_steps`` steps."""
    rough = (high - low) / max_steps
    if not rough > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    # The tolerance keeps a spacing that fits exactly, but for rounding, from being skipped.
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def round_ticks(low: float, high: float) -> list[float]:
    """Evenly spaced round values within the bounds, usually four to six."""
    step = tick_spacing(low, high)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def power_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within the bounds, at most six."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / 6))
    return [10.0**exponent for exponent in range(first, last + 1, every)]


def count_ticks(low: float, high: float) -> list[float]:
    """Return 0 and the powers of ten within the bounds.

    Where these are fewer than three, 2 and 5 times the powers join them; where that does not help,
    ticks are evenly spaced.
    """
    powers = [10.0**exponent for exponent in range(16)]
    for factors in ((1,), (1, 2, 5)):
        every = [0.0, *(power * factor for power in powers for factor in factors)]
        ticks = [tick for tick in every if low <= tick <= high]
        if len(ticks) > 2:
            return ticks
    return round_ticks(low, high)


def tick_label(value: float, step: float) -> str:
    """A value with as many decimals as the spacing of ticks needs, and a typographic minus."""
    if step < 1e-4 or step >= 1e7:
        return f"{value:.3g}".replace("-", "−")
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    # Adding 0.0 turns −0.0 into 0.0.
    return f"{round(value, places) + 0.0:,.{places}f}".replace("-", "−")


def data_bounds(
    *values_M: np.ndarray, zero: bool = False, log: bool = False
) -> tuple[float, float]:
    """Bounds (low < high) of all finite values.

    ``zero`` includes 0. ``log`` takes positive values only and rounds outward to powers of ten.
    Without any value the bounds are 0 and 1, or 1 and 10.
    """
    every = np.concatenate([np.empty(0), *(np.ravel(values) for values in values_M)])
    every = every[np.isfinite(every) & ((every > 0) | (not log))]
    if not len(every):
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = float(every.min()), float(every.max())
    if log:
        return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high) + 1e-9)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    return (low, high) if high > low else (low, low + (abs(low) or 1.0))


def spread_apart(position_R: Sequence[float], distance: float) -> list[float]:
    """Move positions so that neighbours are at least ``distance`` apart; their order stays.

    Used for labels that would overlap. One sweep pushes positions up; half of what the last one
    moved is then taken back from all, so that labels stay around their marks.
    """
    order = np.argsort(position_R, kind="stable")
    moved = np.array(position_R, np.float64)[order]
    for row in range(1, len(moved)):
        moved[row] = max(moved[row], moved[row - 1] + distance)
    surplus = moved[-1] - max(position_R) if len(moved) else 0
    moved -= surplus / 2
    result = np.empty_like(moved)
    result[order] = moved
    return result.tolist()
