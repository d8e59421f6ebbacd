"""What a study is: it measures, says what must hold, and makes the blocks and plot of a page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from analysis.measures.shares import wilson

Results = dict[str, Any]
"""Plain JSON: what a study measured."""
Blocks = Mapping[str, list[str]]
"""Name of a block of the page → its lines of Markdown."""


@dataclass(frozen=True)
class Study:
    """A study, by functions of its results; ``measure`` alone trains."""

    name: str
    """Name of the page, docs/studies/NAME.md, and of the results."""
    measure: Callable[[Path, Sequence[int]], Results]
    """Trains below a folder with these seeds, and returns the results. What is trained there
    already stays."""
    claims: Callable[[Results], Mapping[str, bool]]
    """What the page says → whether the results have it."""
    blocks: Callable[[Results], Blocks]
    draw: Callable[[Results, Path], None] | None
    """Draws the page's plot to a PNG file; None if the study has none of its own."""
    seeds: Sequence[int]
    """Seeds of the page; empty if the study trains one configuration only."""
    fewest: int = 1
    """Least number of seeds with which the study can be measured."""
    after: Sequence[str] = ()
    """Studies whose trainings it takes, so that it cannot run beside them."""


# --- Markdown -------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def step_of(number: float) -> str:
    return f"{round(number):,}"


def between(low: float, high: float) -> str:
    """Return an interval of steps."""
    return f"{step_of(low)} to {step_of(high)}"


def half_width(share: float, n: int) -> float:
    """Return half of Wilson's 95 % interval, which has a width at shares of 0 and 1 too."""
    low, high = wilson(share * n, n)
    return float(high - low) / 2


def mean_and_interval(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean of runs, and its 95 % interval by Student's t if there are two or more."""
    found = np.asarray(values, float)
    mean = f"{found.mean():.{digits}f}"
    if len(found) < 2:
        return mean
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return f"{mean} ± {half:.{digits}f}"
