"""Measures of a ranking against a known set, and their intervals."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import bootstrap

from analysis.measures.ranking import affected, auc, interval, precision

SCORE = arrays.arrays(np.float64, 12, elements=st.integers(-4, 4).map(float))
HITS = arrays.arrays(np.bool_, 12)


@given(score_W=SCORE, hit_W=HITS)
def test_auc_counts_pairs_in_the_right_order_and_half_of_the_ties(score_W, hit_W):
    pairs = list(itertools.product(score_W[hit_W], score_W[~hit_W]))
    if not pairs:
        assert np.isnan(auc(score_W, hit_W))
        return
    wanted = np.mean([(high > low) + 0.5 * (high == low) for high, low in pairs])
    assert auc(score_W, hit_W) == pytest.approx(wanted)


@given(score_W=SCORE, hit_W=HITS, scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_only_the_order_of_scores_counts(score_W, hit_W, scale, shift):
    moved_W = scale * score_W + shift
    np.testing.assert_equal(auc(score_W, hit_W), auc(moved_W, hit_W))
    if hit_W.any() and not hit_W.all():
        assert auc(-score_W, hit_W) == pytest.approx(1 - auc(score_W, hit_W))


@given(score_W=SCORE, hit_W=HITS, most=st.integers(1, 12))
def test_precision_is_the_expectation_over_orders_of_ties(score_W, hit_W, most):
    """Compare with the mean over many random orders of the ties."""
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(300):
        order = rng.permutation(12)
        first = order[np.argsort(-score_W[order], kind="stable")][:most]
        draws.append(hit_W[first].mean())
    assert precision(score_W, hit_W, most) == pytest.approx(np.mean(draws), abs=0.12)


def test_precision_of_distinct_scores_is_a_count():
    hit_W = np.array([True, False, True, False, False])
    assert precision(np.array([5.0, 4, 3, 2, 1]), hit_W, 2) == 0.5
    assert precision(np.array([5.0, 4, 3, 2, 1]), hit_W, 99) == 0.4


@given(size_W=arrays.arrays(np.float64, 20, elements=st.floats(0, 3)), share=st.floats(0.01, 0.5))
def test_affected_tokens_have_the_largest_effects(size_W, share):
    hit_W = affected(size_W, share)
    if hit_W.any() and not hit_W.all():
        assert size_W[hit_W].min() > size_W[~hit_W].max()
    assert not hit_W[size_W == 0].any()
    if len(set(size_W)) == 20:
        assert hit_W.sum() <= max(1, round(share * 20))


def test_intervals_contain_the_mean_and_leave_out_nan():
    values = np.array([0.2, 0.4, np.nan, 0.9])
    mean, low, high = interval(values, resamples=500, seed=0)
    assert mean == pytest.approx(0.5)
    assert 0.2 <= low < mean < high <= 0.9
    assert all(np.isnan(interval(np.array([np.nan]), resamples=10, seed=0)))


def test_intervals_equal_scipys_percentile_bootstrap():
    values, rng = np.random.default_rng(1).normal(size=9), np.random.default_rng(5)
    options = {"n_resamples": 200, "batch": 200, "method": "percentile"}
    wanted = bootstrap((values,), np.mean, rng=rng, **options).confidence_interval
    found = interval(values, resamples=200, seed=5)
    assert found == pytest.approx((values.mean(), wanted.low, wanted.high), rel=1e-12)
