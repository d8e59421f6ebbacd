"""Tables of the benchmark of effects, as lines of Markdown, from its results.

Shapes: Q query.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.influence.baselines.methods import RANDOM
from analysis.measures.bootstrap import dense_intervals
from benchmarks.effects.judge import KNOWN
from benchmarks.effects.removals import LOWEST, OTHER, SAME
from benchmarks.harness.markdown import NAMES, Column, bold, by_mean, cell, known, rows

LEVELS = ("neuron", "head")
CONTROLS = (SAME, OTHER, RANDOM, LOWEST)
"""Rows of the table of removals that are no methods."""


def correlation_columns(found: Mapping[str, Any]) -> list[Column]:
    """Return the LDS of the effects of neurons, and of heads, for each share kept."""
    levels = np.array([query["level"] for query in found["queries"]])
    return [
        {name: np.array(own, float)[levels == level].tolist() for name, own in kept["lds"].items()}
        for level in LEVELS
        for kept in found["keep"].values()
    ]


def correlation_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each method, and one for the query's gradient times the true change."""
    columns = correlation_columns(found)
    methods = [{name: own for name, own in each.items() if name != KNOWN} for each in columns]
    yield from rows(methods, by_mean(methods[0]))
    yield f"| *{KNOWN}* | {' | '.join(cell(column[KNOWN]) for column in columns)} |"


def bound_line(found: Mapping[str, Any]) -> str:
    """Return the bound that chance sets to the LDS of any method."""
    levels = np.array([query["level"] for query in found["queries"]])
    noise_Q = np.array(found["reproducibility"]["spread"])
    cells = []
    for level in LEVELS:
        for kept in found["keep"].values():
            ratio_Q = noise_Q / np.array(kept["spread"])
            bound_Q = np.sqrt(np.clip(1 - ratio_Q**2, 0, 1))
            cells.append(cell(bound_Q[levels == level].tolist()))
    return f"| *bound by reproducibility* | {' | '.join(cells)} |"


def removal_columns(found: Mapping[str, Any]) -> list[Column]:
    """Return the effect left by method, of neurons and of heads."""
    removal = found["removal"]
    levels = np.array([found["queries"][row]["level"] for row in removal["queries"]])
    return [
        {
            name: np.array(own, float)[levels == level].tolist()
            for name, own in removal["left"].items()
        }
        for level in LEVELS
    ]


def removal_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each method and control; the smallest effect left of a method is bold."""
    columns = removal_columns(found)
    methods = [name for name in columns[0] if name not in CONTROLS]
    least = [min(methods, key=lambda name: np.mean(known(column[name]))) for column in columns]
    for name in (*methods, *CONTROLS):
        cells = [cell(column[name]) for column in columns]
        own = [bold(text) if name == least[n] else text for n, text in enumerate(cells)]
        yield f"| {NAMES.get(name, name)} | {' | '.join(own)} |"


def interval_over_tokens(value_Q: np.ndarray, token_Q: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean when tokens are drawn instead of queries.

    Queries about one token are drawn together, because their values are not independent.
    """
    _, place_Q = np.unique(np.array(token_Q), return_inverse=True)
    total_K, count_K = np.bincount(place_Q, value_Q), np.bincount(place_Q)
    low_1, high_1 = dense_intervals(total_K[:, None], count_K[:, None])
    return float(low_1[0]), float(high_1[0])
