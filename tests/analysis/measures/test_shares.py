"""Intervals of shares equal SciPy's, and never have width 0."""

import numpy as np
import pytest
from scipy import stats

from analysis.measures.shares import wider, wilson


@pytest.mark.parametrize(("part", "whole"), [(0, 18), (2, 18), (11, 33), (20, 30), (7, 7), (0, 1)])
def test_wilson_intervals_equal_scipys(part: int, whole: int) -> None:
    wanted = stats.binomtest(part, whole).proportion_ci(method="wilson")
    low, high = wilson(part, whole)
    assert (float(low), float(high)) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert low < high


def test_no_trials_have_no_interval() -> None:
    assert np.isnan(wilson(np.array([0, 3]), np.array([0, 4]))).tolist() == [[True, False]] * 2


def test_the_wider_interval_holds_both() -> None:
    low, high = wider((np.array([0.0, np.nan]), np.array([0.0, np.nan])), wilson(0, 50))
    assert low[0] == 0
    assert high[0] == pytest.approx(0.0713, abs=1e-4)
    assert np.isnan(low[1])
