"""How far a share or a mean would be off, had other datums been drawn: bootstrap intervals.

A ratio Σ part / Σ whole over datums is taken anew for draws of as many datums, with replacement;
the interval holds the middle 95 % of the draws in which the ratio exists. What fewer than two
datums speak of has no interval (NaN): redrawing one datum only repeats it.

Shapes: K datum, C column (a token, say), R draw, E entry of a K × C table.
"""

import functools

import numpy as np

NUM_DRAWS = 1000
CONFIDENCE = 0.95
COLUMNS_AT_ONCE = 256
"""Bounds the memory: draws by so many columns, and datums by so many columns."""


@functools.lru_cache(maxsize=4)
def draw_counts(num_datums: int, seed: int = 0) -> np.ndarray:
    """How often each datum is drawn, [R, K] float32."""
    rng = np.random.default_rng(seed)
    datum_RK = rng.integers(num_datums, size=(NUM_DRAWS, num_datums))
    place = datum_RK + num_datums * np.arange(NUM_DRAWS)[:, None]
    count = np.bincount(place.ravel(), minlength=NUM_DRAWS * num_datums)
    return count.reshape(NUM_DRAWS, num_datums).astype(np.float32)


def intervals(
    num_datums: int,
    num_columns: int,
    part: tuple[np.ndarray, np.ndarray, np.ndarray],
    whole: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high end of Σ part / Σ whole of each column, both [C].

    ``part`` and ``whole`` are tables of datums by columns, told by their entries: datum, column,
    value; values of the same place add up.
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
    """The same entries, sorted by column."""
    order_E = np.argsort(table[1], kind="stable")
    return table[0][order_E], table[1][order_E], table[2][order_E]


def dense_block(
    num_datums: int, start: int, end: int, table: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Some columns of a table whose entries are sorted by column, [K, C] float32."""
    own = slice(*np.searchsorted(table[1], (start, end)))
    datum_E, column_E, value_E = (entry_E[own] for entry_E in table)
    place_E = datum_E * (end - start) + column_E - start
    total = np.bincount(place_E, weights=value_E, minlength=num_datums * (end - start))
    return total.reshape(num_datums, end - start).astype(np.float32)


def dense_intervals(part_KC: np.ndarray, whole_KC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for whole tables, both [C]."""
    draw_RK = draw_counts(len(part_KC))
    part_RC, whole_RC = draw_RK @ part_KC, draw_RK @ whole_KC
    exists_RC = whole_RC > 0
    ratio_RC = np.full_like(part_RC, np.nan)
    np.divide(part_RC, whole_RC, out=ratio_RC, where=exists_RC)
    ratio_RC.sort(axis=0)  # NaN comes last
    last_C = np.maximum(exists_RC.sum(0) - 1, 0)
    alone_C = (whole_KC > 0).sum(0) < 2
    ends = []
    for quantile in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2):
        place_C = np.rint(quantile * last_C).astype(int)
        end_C = np.take_along_axis(ratio_RC, place_C[None], 0)[0]
        ends.append(np.where(alone_C, np.nan, end_C))
    return ends[0], ends[1]


def mean_interval(value_K: np.ndarray) -> tuple[float, float]:
    """Low and high end of a mean over datums (or neurons); NaN values do not count."""
    known_K = value_K[~np.isnan(value_K)].astype(np.float64)
    if len(known_K) < 2:
        return np.nan, np.nan
    low_1, high_1 = dense_intervals(known_K[:, None], np.ones((len(known_K), 1)))
    return float(low_1[0]), float(high_1[0])
