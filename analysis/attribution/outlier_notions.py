"""Other notions of an outlier: a shift that is large for its unit, its neuron, or its parameter.

What a run records are the largest shifts of each datum, whatever parameter they are of; units and
neurons that move more in general get more of them. The study names as alternatives to normalise by
unit or by neuron, and to look for outliers in each parameter's own time series. Here |shift| is
divided by a scale, the root mean square of the recorded shifts of its unit, of its neuron (column
of a unit with two axes), or of its parameter, and the share of all rows with the largest quotients
is kept.

This ranks anew *what was recorded*, and no more: a shift that was not among the largest of its
datum is not in the record, so a parameter that never moves much has no outliers by any notion.

Two passes over the rows come before they are used: one for the scales, one for the quotient from
which on the wanted share is kept.

Shapes: P captured parameter, S group with a scale, M row, B bin of quotients.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from analysis.attribution.outlier_weights import Outlying, Reading, sizes
from analysis.jobs.job import Rows, Runner
from analysis.run.scan import Shard
from capture.gradients.layout import Layout

Notion = Literal["absolute", "unit", "neuron", "parameter"]
NOTIONS: tuple[Notion, ...] = get_args(Notion)
DROPPED_BITS = 12
"""Of a quotient's float32: bins are 0.02 to 0.05 % wide."""
BINS = 2 ** (31 - DROPPED_BITS)


def find_outlying(
    run_job: Runner, shards: list[Shard], reading: Reading, notion: Notion, keep: float
) -> Outlying | None:
    """Which rows count by this notion so that a share ``keep`` of them does; None: all."""
    if notion == "absolute":
        return None
    group_P = scale_groups(notion, reading.layout)
    scale_P = run_job(ScaleRows(reading, group_P), shards)[group_P].astype(np.float32)
    rows_B = run_job(SizeRows(reading, scale_P), shards)
    return Outlying(scale_P, least_size(rows_B, keep))


def scale_groups(notion: Notion, layout: Layout) -> np.ndarray:
    """Which parameters share a scale, int64 [P]; a neuron of a bias is the whole bias."""
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


def least_size(rows_B: np.ndarray, keep: float) -> float:
    """The greatest lower edge of a bin from which on at least a share ``keep`` of rows lies."""
    from_here_B = np.cumsum(rows_B[::-1])[::-1]
    enough_B = np.flatnonzero(from_here_B >= keep * rows_B.sum())
    edge = np.array([enough_B[-1] << DROPPED_BITS], np.uint32)
    return float(edge.view(np.float32)[0])


@dataclass(frozen=True, eq=False)
class ScaleRows:
    """The job that finds the root mean square of the shifts of each group, float64 [S]."""

    reading: Reading
    group_P: np.ndarray

    def map_shard(self, shard: Rows) -> np.ndarray:
        """Rows and sum of squares of each group, float64 [2, S]."""
        sums_2S = np.zeros((2, int(self.group_P.max()) + 1))
        for piece in self.reading.pieces(shard, ["shift"]):
            group_M = self.group_P[piece.place_M]
            square_M = piece.shift_M.astype(np.float64) ** 2
            sums_2S[0] += np.bincount(group_M, minlength=sums_2S.shape[1])
            sums_2S[1] += np.bincount(group_M, square_M, sums_2S.shape[1])
        return sums_2S

    def merge(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    def finish(self, partial: np.ndarray) -> np.ndarray:
        rows_S, squares_S = partial
        return np.sqrt(squares_S / np.maximum(rows_S, 1))


@dataclass(frozen=True, eq=False)
class SizeRows:
    """The job that counts rows by their shift in units of its scale, int64 [B]."""

    reading: Reading
    scale_P: np.ndarray

    def map_shard(self, shard: Rows) -> np.ndarray:
        rows_B = np.zeros(BINS, np.int64)
        for piece in self.reading.pieces(shard, ["shift"]):
            size_M = sizes(self.scale_P, piece.place_M, piece.shift_M)
            rows_B += np.bincount(size_M.view(np.uint32) >> DROPPED_BITS, minlength=BINS)
        return rows_B

    def merge(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    def finish(self, partial: np.ndarray) -> np.ndarray:
        return partial
