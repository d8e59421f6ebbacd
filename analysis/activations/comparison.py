"""Distributions of a neuron's activations: the numbers behind the study's Figures 1 to 3.

- Figure 1: one neuron, on one token and on frequent words drawn at random.
- Figure 2: one token, in the neuron and in the neurons next to it.
- Figure 3: one neuron, on several tokens and on the frequent words.

Shapes: N datum, T position, M position of any datum, C compared neuron, B bin.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.activations.config import ComparisonChoice
from analysis.activations.histograms import activations_at, bin_bounds, bins_of, histogram
from analysis.activations.quantities import Quantity, Report, units_of
from analysis.jobs.sweep import Sweep, in_turn
from capture.parts import KnownModel

MAX_POSITIONS = 2000
"""Largest number of positions per token; drawn at random if there are more."""

COMPARISONS = pa.schema(
    [
        pa.field("figure", pa.int32()),  # 1: one token and others; 2: neurons; 3: tokens, others
        pa.field("unit", pa.string()),
        pa.field("neuron", pa.int32()),  # number of the neuron (row, head) in the unit
        pa.field("token", pa.string()),
        pa.field("token_id", pa.int32()),
        pa.field("focus", pa.bool_()),  # subject of the figure, not what it is compared with
        pa.field("count", pa.int64()),  # number of positions, at most 2,000
        pa.field("mean", pa.float64()),
        pa.field("std", pa.float64()),
        pa.field("min", pa.float64()),
        pa.field("q25", pa.float64()),
        pa.field("median", pa.float64()),
        pa.field("q75", pa.float64()),
        pa.field("max", pa.float64()),
    ]
)
"""One row per distribution; the figure's subject comes first, in figure 2 neurons ascend."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """Activations of a neuron at the positions of a token, in one of the figures."""

    figure: int
    unit: str
    neuron: int
    token: int
    focus: bool
    x_M: np.ndarray


def compare(
    model: KnownModel,
    token_NT: np.ndarray,
    label_NT: np.ndarray,
    choice: ComparisonChoice,
    seed: int,
    report: Report | None,
    sweep: Sweep = in_turn,
    quantity: Quantity = "inputs",
) -> Iterator[Distribution]:
    """Yield the distributions of the three figures, in order.

    ``label_NT`` holds the token that each position counts for. ``report`` is called with the
    number of datums done and their total.
    """
    shown = [*choice.tokens, *choice.others]
    rng = np.random.default_rng(seed)
    indices = [draw_positions(label_NT.ravel(), token, rng) for token in shown]
    columns = neighbours(choice.neuron, units_of(model, quantity)[choice.unit])
    index_M = np.concatenate(indices)
    where = (index_M, choice.unit, columns, quantity)
    x_MC = activations_at(model, token_NT, *where, report, sweep)
    ends = np.cumsum([len(index_M) for index_M in indices])[:-1]
    by_token = dict(zip(shown, np.split(x_MC, ends), strict=True))
    own, first = columns.index(choice.neuron), choice.tokens[0]

    def one(figure: int, token: int, column: int, focus: bool) -> Distribution:
        x_M = by_token[token][:, column]
        return Distribution(figure, choice.unit, columns[column], token, focus, x_M)

    for token in (first, *choice.others):
        yield one(1, token, own, token == first)
    for column in range(len(columns)):
        yield one(2, first, column, column == own)
    for token in shown:
        yield one(3, token, own, token in choice.tokens)


def draw_positions(label_M: np.ndarray, token: int, rng: np.random.Generator) -> np.ndarray:
    """Return at most ``MAX_POSITIONS`` flat indices of a token's positions, ascending."""
    index_M = np.flatnonzero(label_M == token)
    if len(index_M) <= MAX_POSITIONS:
        return index_M
    return np.sort(rng.choice(index_M, MAX_POSITIONS, replace=False))


def neighbours(neuron: int, num_neurons: int) -> list[int]:
    """Return the neuron and up to two neurons on either side."""
    return list(range(max(neuron - 2, 0), min(neuron + 3, num_neurons)))


def comparison_table(compared: Sequence[Distribution], names: Sequence[str]) -> pd.DataFrame:
    """Build ``COMPARISONS``."""
    rows = []
    for found in compared:
        x_M = found.x_M.astype(np.float64)
        low, q25, median, q75, high = np.quantile(x_M, [0, 0.25, 0.5, 0.75, 1])
        spread = {"min": low, "q25": q25, "median": median, "q75": q75, "max": high}
        named = {name: getattr(found, name) for name in ("figure", "unit", "neuron", "focus")}
        named |= {"token": names[found.token], "token_id": found.token, "count": len(x_M)}
        rows.append(named | {"mean": x_M.mean(), "std": x_M.std()} | spread)
    return pd.DataFrame(rows)


def histogram_tables(compared: Sequence[Distribution], names: Sequence[str]) -> list[pd.DataFrame]:
    """Build ``HISTOGRAMS`` of every distribution, in order; one figure shares its bins."""
    frames = []
    for figure in (1, 2, 3):
        own = [found for found in compared if found.figure == figure]
        low, high = (f([f(found.x_M) for found in own]) for f in (np.min, np.max))
        bound_B = bin_bounds(float(low), float(high))
        for found in own:
            count_B = np.bincount(bins_of(found.x_M, bound_B), minlength=len(bound_B) - 1)
            named = {"unit": found.unit, "neuron": found.neuron, "group": names[found.token]}
            frames.append(histogram(bound_B, count_B, figure=figure, **named))
    return frames
