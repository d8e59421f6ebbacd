"""Bootstrap intervals equal a loop over draws and have the right coverage."""

import numpy as np
import pytest

from analysis.measures import bootstrap
from analysis.measures.bootstrap import draw_counts, intervals, mean_interval


def some_tables(seed: int, num_datums: int, num_columns: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    whole_KC = rng.poisson(0.4, (num_datums, num_columns))
    return rng.binomial(whole_KC, 0.3), whole_KC


def sparse(table_KC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the table's entries in random order, each value split into two halves."""
    datum, column = np.nonzero(table_KC)
    order = np.random.default_rng(1).permutation(np.tile(np.arange(len(datum)), 2))
    return datum[order], column[order], table_KC[datum, column][order] / 2


def test_draws_are_with_replacement_and_the_same_each_time() -> None:
    draw_RK = draw_counts(30)
    assert (draw_RK.sum(1) == 30).all()
    assert abs(draw_RK.mean(0) - 1).max() < 0.2
    assert draw_RK.var() == pytest.approx(1 - 1 / 30, rel=0.05)
    draw_counts.cache_clear()
    assert np.array_equal(draw_counts(30), draw_RK)


def test_intervals_equal_a_loop_over_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "COLUMNS_AT_ONCE", 4)
    part_KC, whole_KC = some_tables(0, 25, 11)
    low_C, high_C = intervals(25, 11, sparse(part_KC), sparse(whole_KC))
    for c in range(11):
        if (whole_KC[:, c] > 0).sum() < 2:
            assert np.isnan(low_C[c])
            assert np.isnan(high_C[c])
            continue
        drawn = [(draw_K @ part_KC[:, c], draw_K @ whole_KC[:, c]) for draw_K in draw_counts(25)]
        ratios = [part / whole for part, whole in drawn if whole > 0]
        wanted = np.quantile(ratios, [0.025, 0.975], method="nearest")
        np.testing.assert_allclose([low_C[c], high_C[c]], wanted, rtol=1e-6)


def test_intervals_have_the_right_coverage() -> None:
    """About 95 % of the intervals contain the true share."""
    rng = np.random.default_rng(0)
    whole_KC = rng.poisson(3.0, (200, 400))
    part_KC = rng.binomial(whole_KC, 0.3)
    low_C, high_C = intervals(200, 400, sparse(part_KC), sparse(whole_KC))
    assert 0.91 < ((low_C <= 0.3) & (high_C >= 0.3)).mean() < 0.98


def test_a_column_of_one_datum_has_no_interval() -> None:
    one = (np.array([3]), np.array([0]), np.array([1.0]))
    low_C, high_C = intervals(9, 2, one, one)
    assert np.isnan([*low_C, *high_C]).all()
    assert np.isnan(mean_interval(np.array([2.0, np.nan]))).all()


def test_the_interval_of_a_mean() -> None:
    value_K = np.random.default_rng(0).normal(5.0, 2.0, 400)
    low, high = mean_interval(value_K)
    assert low < value_K.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 2.0 / 20, rel=0.15)
    assert mean_interval(np.full(7, 3.0)) == (3.0, 3.0)
