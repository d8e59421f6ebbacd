"""Bootstrap intervals of shares and means over datums.

Each statistic is a ratio Σ part / Σ whole over K datums. It is recomputed for samples of K datums
drawn with replacement. The interval spans the middle 95 % of the samples in which the ratio is
defined (percentile bootstrap, nearest rank). A column in which fewer than two datums have any
weight gets no interval (NaN), because resampling one datum only repeats it.

All columns share the same draws, so one matrix product serves them all; see
``docs/concepts/design-choices.md`` for the comparison with ``scipy.stats.bootstrap``.

Shapes: K datum, C column (for example a token), R draw, E entry of a K × C table.
"""

import functools

import numpy as np

NUM_DRAWS = 1000
CONFIDENCE = 0.95
COLUMNS_AT_ONCE = 256
"""Number of columns in memory at once: R × C and K × C arrays."""


@functools.lru_cache(maxsize=4)
def draw_counts(num_datums: int, seed: int = 0) -> np.ndarray:
    """Return how often each draw contains each datum, [R, K] float32; the seed fixes the draws."""
    rng = np.random.default_rng(seed)
    datum_RK = rng.integers(num_datums, size=(NUM_DRAWS, num_datums))
    index_RK = datum_RK + num_datums * np.arange(NUM_DRAWS)[:, None]
    count = np.bincount(index_RK.ravel(), minlength=NUM_DRAWS * num_datums)
    return count.reshape(NUM_DRAWS, num_datums).astype(np.float32)


def intervals(
    num_datums: int,
    num_columns: int,
    part: tuple[np.ndarray, np.ndarray, np.ndarray],
    whole: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval bounds of Σ part / Σ whole for each column, both [C].

    ``part`` and ``whole`` are sparse K × C tables, given as (datum, column, value) entries; values
    of the same cell add up.
    """
    low_C, high_C = np.full((2, num_columns), np.nan)
    part, whole = by_column(part), by_column(whole)
    for start in range(0, num_columns, COLUMNS_AT_ONCE):
        end = min(start + COLUMNS_AT_ONCE, num_columns)
        dense = (dense_block(num_datums, start, end, table) for table in (part, whole))
        low_C[start:end], high_C[start:end] = dense_intervals(*dense)
    return low_C, high_C


def by_column(
    table: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort the entries of a table by column."""
    order_E = np.argsort(table[1], kind="stable")
    return table[0][order_E], table[1][order_E], table[2][order_E]


def dense_block(
    num_datums: int, start: int, end: int, table: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return columns ``start`` to ``end`` of a table sorted by column, [K, C] float32."""
    own = slice(*np.searchsorted(table[1], (start, end)))
    datum_E, column_E, value_E = (entry_E[own] for entry_E in table)
    index_E = datum_E * (end - start) + column_E - start
    total = np.bincount(index_E, weights=value_E, minlength=num_datums * (end - start))
    return total.reshape(num_datums, end - start).astype(np.float32)


def dense_intervals(part_KC: np.ndarray, whole_KC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval bounds of Σ part / Σ whole for dense tables, both [C]."""
    draw_RK = draw_counts(len(part_KC))
    part_RC, whole_RC = draw_RK @ part_KC, draw_RK @ whole_KC
    exists_RC = whole_RC > 0
    ratio_RC = np.full_like(part_RC, np.nan)
    np.divide(part_RC, whole_RC, out=ratio_RC, where=exists_RC)
    ratio_RC.sort(axis=0)  # NaN comes last
    last_C = np.maximum(exists_RC.sum(0) - 1, 0)
    single_C = (whole_KC > 0).sum(0) < 2
    ends = []
    for quantile in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2):
        rank_C = np.rint(quantile * last_C).astype(int)
        end_C = np.take_along_axis(ratio_RC, rank_C[None], 0)[0]
        ends.append(np.where(single_C, np.nan, end_C))
    return ends[0], ends[1]


def difference_interval(part_K2: np.ndarray, whole_K2: np.ndarray) -> tuple[float, float]:
    """Return the interval bounds of Σ part / Σ whole of the first column minus that of the second.

    Both ratios are computed from the same draws. NaN as for ``dense_intervals``, if either is.
    """
    if ((whole_K2 > 0).sum(0) < 2).any():
        return np.nan, np.nan
    draw_RK = draw_counts(len(part_K2))
    part_R2, whole_R2 = draw_RK @ part_K2, draw_RK @ whole_K2
    exists_R = (whole_R2 > 0).all(1)
    ratio_R2 = part_R2[exists_R] / whole_R2[exists_R]
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(ratio_R2[:, 0] - ratio_R2[:, 1], ends, method="nearest")
    return float(low), float(high)


def mean_interval(value_K: np.ndarray) -> tuple[float, float]:
    """Return the interval bounds of a mean over datums or neurons; NaN values are ignored."""
    known_K = value_K[~np.isnan(value_K)].astype(np.float64)
    if len(known_K) < 2:
        return np.nan, np.nan
    low_1, high_1 = dense_intervals(known_K[:, None], np.ones((len(known_K), 1)))
    return float(low_1[0]), float(high_1[0])
