"""From numbers to pixels: scales, round ticks and their labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        low, high = self.bend(self.low), self.bend(self.high)
        share = (self.bend(values) - low) / ((high - low) or 1)
        return self.start + share * (self.end - self.start)

    def bend(self, values: np.ndarray | float) -> np.ndarray:
        return np.log10(values) if self.log else np.asarray(values, np.float64)

    @property
    def ticks(self) -> list[float]:
        return (powers if self.log else round_ticks)(self.low, self.high)

    def label(self, value: float) -> str:
        if self.log:
            return f"10{str(round(math.log10(value))).translate(SUPERSCRIPTS)}"
        return plain(value, spacing(self.low, self.high))


def spacing(low: float, high: float, most: int = 5) -> float:
    """The smallest of 1, 2, 5 × 10ⁿ that leaves at most so many steps between two values."""
    rough = (high - low) / most
    if not rough > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def round_ticks(low: float, high: float) -> list[float]:
    """Round values within two bounds, evenly spaced; some four to six."""
    step = spacing(low, high)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def powers(low: float, high: float) -> list[float]:
    """Powers of ten within two bounds, at most six of them."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / 6))
    return [10.0**exponent for exponent in range(first, last + 1, every)]


def plain(value: float, step: float) -> str:
    """A tick's label, with as many places as its step needs; a real minus."""
    if step < 1e-4 or step >= 1e7:
        return f"{value:.3g}".replace("-", "−")
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{round(value, places) + 0.0:,.{places}f}".replace("-", "−")


def bounds(*values_M: np.ndarray, zero: bool = False, log: bool = False) -> tuple[float, float]:
    """Least and greatest finite value (positive, if ``log``), a little apart if they coincide."""
    every = np.concatenate([np.empty(0), *(np.ravel(values) for values in values_M)])
    every = every[np.isfinite(every) & ((every > 0) | (not log))]
    if not len(every):
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = float(every.min()), float(every.max())
    if log:
        return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high) + 1e-9)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    return (low, high) if high > low else (low, low + (abs(low) or 1.0))


def spread(places_R: Sequence[float], apart: float) -> list[float]:
    """The places, moved as little as a sweep down and back up can so that none are too close."""
    order = np.argsort(places_R, kind="stable")
    moved = np.array(places_R, np.float64)[order]
    for row in range(1, len(moved)):
        moved[row] = max(moved[row], moved[row - 1] + apart)
    surplus = moved[-1] - max(places_R) if len(moved) else 0
    moved -= surplus / 2
    result = np.empty_like(moved)
    result[order] = moved
    return result.tolist()
