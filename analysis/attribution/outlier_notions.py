"""Other notions of an outlier: a shift that is large for its unit, its neuron, or its parameter.

A run records the largest shifts of each datum over all parameters, so units and neurons that move
more get more rows. The study names two alternatives: to normalise by unit or by neuron, and to look
for outliers in each parameter's own time series. Here |shift| is divided by a scale: the root mean
square of the recorded shifts of its unit, of its neuron (column of a unit with two axes), or of its
parameter. The share of all rows with the largest quotients is kept.

Only *recorded* rows are ranked. A shift that was not among the largest of its datum is not in the
record, so a parameter that never moves much has no outliers by any notion.

This takes two passes over the rows before they are used: one for the scales, one for the threshold
above which the wanted share of rows lies.

Shapes: P captured parameter, S group with a scale, M row, B bin of quotients.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from analysis.attribution.outlier_weights import OutlierFilter, RowReader, scaled_shifts
from analysis.jobs.job import Rows, Runner
from analysis.run.scan import Shard
from capture.gradients.layout import Layout

Notion = Literal["absolute", "unit", "neuron", "parameter"]
NOTIONS: tuple[Notion, ...] = get_args(Notion)
DROPPED_BITS = 12
"""Low bits of a float32 quotient that a bin ignores; bins are 0.02 to 0.05 % wide."""
BINS = 2 ** (31 - DROPPED_BITS)


def find_outlier_filter(
    run_job: Runner, shards: list[Shard], reader: RowReader, notion: Notion, keep: float
) -> OutlierFilter | None:
    """Return the filter that keeps a share ``keep`` of the rows; None to keep all (*absolute*)."""
    if notion == "absolute":
        return None
    group_P = scale_groups(notion, reader.layout)
    scale_P = run_job(FindScales(reader, group_P), shards)[group_P].astype(np.float32)
    rows_B = run_job(CountBySize(reader, scale_P), shards)
    return OutlierFilter(scale_P, threshold_of(rows_B, keep))


def scale_groups(notion: Notion, layout: Layout) -> np.ndarray:
    """Return the scale's group of each parameter, int64 [P]. A bias is one group by *neuron*."""
    if notion == "parameter":
        return np.arange(layout.size)
    group_P, first = np.zeros(layout.size, np.int64), 0
    for shape, start, size in zip(
        layout.shapes.values(), layout.offsets, layout.sizes, strict=False
    ):
        columns = shape[1] if notion == "neuron" and len(shape) == 2 else 1
        group_P[start : start + size] = first + np.arange(size) % columns
        first += columns
    return group_P


def threshold_of(rows_B: np.ndarray, keep: float) -> float:
    """Return the largest bin edge at or above which at least a share ``keep`` of rows lies."""
    from_here_B = np.cumsum(rows_B[::-1])[::-1]
    enough_B = np.flatnonzero(from_here_B >= keep * rows_B.sum())
    # The bits of non-negative floats are ordered as the floats are, so a bin is a range of floats.
    edge = np.array([enough_B[-1] << DROPPED_BITS], np.uint32)
    return float(edge.view(np.float32)[0])


@dataclass(frozen=True, eq=False)
class FindScales:
    """Job that returns the root mean square of the shifts of each group, float64 [S]."""

    reader: RowReader
    group_P: np.ndarray

    def map_shard(self, shard: Rows) -> np.ndarray:
        """Return number of rows and sum of squares of each group, float64 [2, S]."""
        sums_2S = np.zeros((2, int(self.group_P.max()) + 1))
        for rows in self.reader.batches(shard, ["shift"]):
            group_M = self.group_P[rows.parameter_M]
            square_M = rows.shift_M.astype(np.float64) ** 2
            sums_2S[0] += np.bincount(group_M, minlength=sums_2S.shape[1])
            sums_2S[1] += np.bincount(group_M, square_M, sums_2S.shape[1])
        return sums_2S

    def merge(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    def finish(self, partial: np.ndarray) -> np.ndarray:
        rows_S, squares_S = partial
        return np.sqrt(squares_S / np.maximum(rows_S, 1))


@dataclass(frozen=True, eq=False)
class CountBySize:
    """Job that returns a histogram of |shift| / scale over rows, int64 [B]."""

    reader: RowReader
    scale_P: np.ndarray

    def map_shard(self, shard: Rows) -> np.ndarray:
        rows_B = np.zeros(BINS, np.int64)
        for rows in self.reader.batches(shard, ["shift"]):
            size_M = scaled_shifts(self.scale_P, rows.parameter_M, rows.shift_M)
            rows_B += np.bincount(size_M.view(np.uint32) >> DROPPED_BITS, minlength=BINS)
        return rows_B

    def merge(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    def finish(self, partial: np.ndarray) -> np.ndarray:
        return partial
