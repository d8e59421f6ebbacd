"""Lines of Markdown tables whose cells are means over queries with 95 % bootstrap intervals.

A column of a table is a mapping from method to the value of each query; None and NaN are values
that were not measured.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from analysis.influence.judge.correlations import mean_over_queries

Values = Sequence[float | None]
Column = Mapping[str, Values]
NAMES = {
    "unrolled": "unrolled",
    "adamw-influence": "AdamW-influence",
    "path": "path",
    "ekfac": "EK-FAC",
    "bm25": "BM25",
    "gradient": "final gradient",
    "cosine": "final gradient, cosine",
    "common-tokens": "tokens in common",
    "outliers": "outliers",
    "tallies": "tallies",
    "random": "random (null)",
}
"""Method → its name in tables, in the order of the rows."""


def rows(columns: Sequence[Column], methods: Sequence[str]) -> Iterator[str]:
    """Yield a line for each method that a column has; the highest mean of a column is bold."""
    known = [name for name in methods if any(name in column for column in columns)]
    best = [max(known, key=lambda name: mean_of(column.get(name))) for column in columns]
    for name in known:
        cells = [cell(column.get(name)) for column in columns]
        own = [bold(text) if name == best[n] else text for n, text in enumerate(cells)]
        yield f"| {NAMES.get(name, name)} | {' | '.join(own)} |"


def by_mean(column: Column) -> list[str]:
    """Return the methods of a column, best first; random last."""
    best = sorted(column, key=lambda name: -mean_of(column[name]))
    return [*(name for name in best if name != "random"), "random"]


def mean_of(values: Values | None) -> float:
    """Return the mean over queries with a value; −∞ where nothing was measured."""
    mean = mean_over_queries(known(values))[0]
    return mean if np.isfinite(mean) else -np.inf


def cell(values: Values | None) -> str:
    """Return mean and interval, or a dash where nothing was measured; one value has no interval."""
    mean, low, high, count = mean_over_queries(known(values))
    if count < 2:
        return number(mean) if count else "–"
    return f"{number(mean)} ({number(low)} to {number(high)})"


def known(values: Values | None) -> np.ndarray:
    """Return the values that were measured."""
    found = [value for value in values or () if value is not None]
    return np.array(found, np.float64)


def number(value: float) -> str:
    """Return two digits, with a typographic minus; no minus before 0.00."""
    text = f"{value:.2f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def bold(text: str) -> str:
    """Set the mean in bold."""
    mean, space, rest = text.partition(" ")
    return f"**{mean}**{space}{rest}"
