"""Laws of the judge's statistics and designs, with linear models in place of training."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.influence.judge import designs
from analysis.influence.judge.correlations import datamodeling_scores, mean_over_queries
from analysis.influence.judge.designs import Variation
from analysis.influence.queries.query import Query
from analysis.measures.correlation import pearson, spearman

values = st.lists(st.integers(-3, 3), min_size=3, max_size=12)


@given(st.integers(0, 99), values)
def test_correlations_are_those_of_scipy(seed, x):
    y = np.random.default_rng(seed).normal(size=len(x))
    if len(set(x)) == 1:
        assert np.isnan(spearman(np.array(x), y))
        return
    assert spearman(np.array(x), y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert pearson(np.array(x), y) == pytest.approx(stats.pearsonr(x, y).statistic)


def test_correlations_with_something_unknown_are_unknown():
    assert np.isnan(spearman(np.array([1, np.nan, 2]), np.arange(3)))
    assert np.isnan(pearson(np.array([1.0]), np.array([2.0])))


def linear_experiment(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True scores [Q, D], weights of subsets [M, D], and values of a linear model [M, Q]."""
    rng = np.random.default_rng(seed)
    score_QD = rng.normal(size=(4, 60))
    variations = designs.random_subsets(60, keep=0.5, count=30, seed=seed)
    weight_MD = np.stack([variation.weight_D for variation in variations])
    return score_QD, weight_MD, weight_MD @ score_QD.T + rng.normal(size=4)


@given(st.integers(0, 20))
def test_the_score_of_the_truth_is_1_and_of_its_opposite_minus_1(seed):
    score_QD, weight_MD, value_MQ = linear_experiment(seed)
    # A constant for each datum adds the same to all subsets of one size.
    np.testing.assert_allclose(datamodeling_scores(3 * score_QD + 5, weight_MD, value_MQ), 1)
    np.testing.assert_allclose(datamodeling_scores(-score_QD, weight_MD, value_MQ), -1)


def test_random_scores_score_0_on_average():
    found = []
    for seed in range(50):
        score_QD, weight_MD, value_MQ = linear_experiment(seed)
        other_QD = np.random.default_rng(1000 + seed).normal(size=score_QD.shape)
        found.append(datamodeling_scores(other_QD, weight_MD, value_MQ))
    low, high = mean_over_queries(np.concatenate(found))[1:3]
    assert low < 0 < high
    assert high - low < 0.12


def test_a_query_without_scores_is_left_out_of_the_mean():
    mean, low, high, count = mean_over_queries(np.array([0.5, np.nan, 0.7, 0.6]))
    assert (mean, count) == (pytest.approx(0.6), 3)
    assert 0.5 <= low <= mean <= high <= 0.7
    assert np.isnan(mean_over_queries(np.array([np.nan]))[0])


@given(st.integers(2, 80), st.floats(0.05, 0.95), st.integers(0, 9))
def test_subsets_keep_the_share_and_a_seed_gives_the_same_ones(num_datums, keep, seed):
    first, again = (
        designs.random_subsets(num_datums, keep=keep, count=3, seed=seed) for _ in range(2)
    )
    assert [one.weight_D.sum() for one in first] == [round(keep * num_datums)] * 3
    assert [one.name for one in first] == [one.name for one in again]


def test_a_retraining_is_named_after_what_it_is():
    one = np.ones(5)
    others = [
        Variation(one),
        Variation(np.array([1, 1, 1, 1, 0.0])),
        Variation(one, range(2, 3)),
        Variation(one, range(2, 4)),
    ]
    assert len({variation.name for variation in others}) == 4
    assert Variation(one.copy()).name == others[0].name


def test_datums_that_made_a_loss_what_it_is_lowered_it():
    score_D = np.array([3.0, -2.0, 3.0, 0.0])
    raised, lowered = (Query("q", {}, (), better) for better in ("higher", "lower"))
    assert designs.named_datums(raised, score_D, 2).tolist() == [0, 2]
    assert designs.named_datums(lowered, score_D, 1).tolist() == [1]
    assert designs.reweighted(4, [0, 2], "removal").weight_D.tolist() == [0, 1, 0, 1]
    assert designs.reweighted(4, [0, 2], "duplication").weight_D.tolist() == [2, 1, 2, 1]


def test_removals_are_distinct_slots_of_the_steps():
    datum_SN = np.arange(12).reshape(3, 4)
    found = designs.random_removals(range(7, 10), datum_SN, count=50, seed=0)
    assert [(one.step, one.slot) for one in found] == [(s, n) for s in (7, 8, 9) for n in range(4)]
    assert [one.datum for one in found] == list(range(12))
    variation = found[5].variation(12)
    assert (variation.steps, variation.weight_D.sum(), variation.weight_D[5]) == (
        range(8, 9),
        11,
        0,
    )
