"""Matching and contrasts: laws, plain loops, error rates under the null."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.behaviour.contrast import (
    BootstrapSettings,
    Contrast,
    paired_contrast,
    weighted_contrast,
)
from analysis.behaviour.matching import COVARIATES, balance, covariates, match

FEW = BootstrapSettings(resamples=200, seed=0)

# --- matching -------------------------------------------------------------------------------------


def some_datums(seed: int, num: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariates without ties, selected ids, and whether a datum may be a control."""
    rng = np.random.default_rng(seed)
    covariate_NC = np.stack(
        [rng.integers(1, 4, num), rng.normal(3, 1, num), rng.integers(2, 9, num) + rng.random(num)],
        1,
    )
    selected_S = np.sort(rng.choice(num, 6, replace=False))
    candidate_N = rng.random(num) < 0.7
    candidate_N[selected_S] = False
    return covariate_NC, selected_S, candidate_N


@given(seed=st.integers(0, 10**6), k=st.integers(1, 4))
def test_controls_are_the_nearest_with_as_many_visits_first(seed: int, k: int) -> None:
    covariate_NC, selected_S, candidate_N = some_datums(seed)
    found = match(covariate_NC, selected_S, candidate_N, k, seed=1)
    scaled_NC = covariate_NC / covariate_NC.std(0)
    for selected, control_K in zip(selected_S, found.control_SK, strict=True):
        order = sorted(
            np.flatnonzero(candidate_N),
            key=lambda n: (
                abs(covariate_NC[n, 0] - covariate_NC[selected, 0]),
                math.dist(scaled_NC[n, 1:], scaled_NC[selected, 1:]),
            ),
        )
        assert control_K.tolist() == order[:k]


@given(seed=st.integers(0, 10**6))
def test_the_seed_decides_only_between_ties(seed: int) -> None:
    covariate_NC, selected_S, candidate_N = some_datums(seed)
    first, again = (match(covariate_NC, selected_S, candidate_N, 3, s) for s in (0, 1))
    assert first.control_SK.tolist() == again.control_SK.tolist()
    alike_NC = np.ones_like(covariate_NC)
    draws = [match(alike_NC, selected_S, candidate_N, 3, s).control_SK.tolist() for s in (0, 0, 1)]
    assert draws[0] == draws[1]
    for control_SK in draws:
        assert all(len(set(own)) == 3 and candidate_N[own].all() for own in control_SK)


def test_covariates_equal_a_loop() -> None:
    rng = np.random.default_rng(0)
    token_NT, count_V = rng.integers(0, 5, (7, 6)), np.array([0, 1, 10, 100, 7])
    found = covariates(token_NT, count_V, np.arange(7))
    for n, own in enumerate(token_NT.tolist()):
        logs = [math.log(max(1, count_V[token])) for token in own]
        assert found[n].tolist() == pytest.approx([n, sum(logs) / 6, len(set(own))])


def test_matching_balances_the_covariates() -> None:
    rng = np.random.default_rng(0)
    covariate_NC = np.stack([np.ones(3000), rng.normal(size=3000), rng.normal(size=3000)], 1)
    selected_N = rng.random(3000) < stats.norm.cdf(covariate_NC[:, 1] - 2)
    matched = match(covariate_NC, np.flatnonzero(selected_N), ~selected_N, 5, 0)
    apart_C = covariate_NC[selected_N].mean(0) - covariate_NC[~selected_N].mean(0)
    left = balance(covariate_NC, matched)
    assert apart_C[1] > 0.8
    assert left["covariate"].tolist() == list(COVARIATES)
    assert left["standardised_difference"].abs().max() < 0.1


# --- contrasts ------------------------------------------------------------------------------------


def columns(found: Contrast) -> np.ndarray:
    return np.stack(list(vars(found).values()))


def test_equal_weights_give_welchs_test() -> None:
    rng = np.random.default_rng(0)
    a_KG, b_KG = rng.gamma(1, 1, (30, 8)), rng.gamma(1, 2, (70, 8))
    found = weighted_contrast(a_KG, b_KG, np.full(70, 3), FEW)
    np.testing.assert_allclose(found.p, stats.ttest_ind(a_KG, b_KG, equal_var=False).pvalue)
    np.testing.assert_allclose(found.difference, a_KG.mean(0) - b_KG.mean(0))
    np.testing.assert_allclose(found.ratio, a_KG.mean(0) / b_KG.mean(0))


def test_pairs_give_the_paired_test() -> None:
    rng = np.random.default_rng(0)
    a_KG = rng.gamma(1, 1, (30, 8))
    b_KG = a_KG + rng.normal(0, 0.3, (30, 8))
    found = paired_contrast(a_KG, b_KG, FEW)
    np.testing.assert_allclose(found.p, stats.ttest_rel(a_KG, b_KG).pvalue)
    np.testing.assert_allclose(found.difference, (a_KG - b_KG).mean(0))


@given(seed=st.integers(0, 10**6))
def test_permuting_datums_or_groups_only_permutes_the_results(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a_KG, b_KG, weight_K = rng.random((9, 4)), rng.random((12, 4)), rng.integers(1, 4, 12)
    found = weighted_contrast(a_KG, b_KG, weight_K, FEW)
    groups = rng.permutation(4)
    regrouped = weighted_contrast(a_KG[:, groups], b_KG[:, groups], weight_K, FEW)
    np.testing.assert_allclose(columns(regrouped), columns(found)[:, groups])
    order_a, order_b = rng.permutation(9), rng.permutation(12)
    reordered = weighted_contrast(a_KG[order_a], b_KG[order_b], weight_K[order_b], FEW)
    np.testing.assert_allclose(reordered.p, found.p)
    np.testing.assert_allclose(reordered.difference, found.difference, atol=1e-12)


def test_the_width_of_the_interval_agrees_with_the_standard_error() -> None:
    rng = np.random.default_rng(0)
    a_KG, b_KG = rng.normal(1, 1, (400, 3)), rng.normal(0, 2, (800, 3))
    found = weighted_contrast(a_KG, b_KG, np.ones(800), BootstrapSettings(resamples=2000, seed=0))
    wanted = 2 * 1.96 * math.sqrt(1 / 400 + 4 / 800)
    np.testing.assert_allclose(found.high - found.low, wanted, rtol=0.1)
    assert ((found.low < found.difference) & (found.difference < found.high)).all()


def test_under_the_null_five_percent_of_p_are_below_0_05_with_repeated_controls() -> None:
    rng = np.random.default_rng(0)
    times_K = rng.integers(1, 12, 150)  # a datum may be the control of several
    low = 0
    for _ in range(10):
        a_KG, b_KG = rng.gamma(2, 1, (60, 500)), rng.gamma(2, 1, (150, 500))
        low += (weighted_contrast(a_KG, b_KG, times_K, BootstrapSettings(1, 0)).p < 0.05).sum()
    assert low / 5000 == pytest.approx(0.05, abs=0.012)


def test_groups_without_variance_have_no_p_value() -> None:
    a_KG, b_KG = np.full((5, 2), 0.1), np.full((7, 2), 0.1)
    b_KG[:, 1] = 0
    a_KG[:, 1] = 0
    for found in (
        weighted_contrast(a_KG, b_KG, np.ones(7), FEW),
        paired_contrast(a_KG, b_KG[:5], FEW),
    ):
        assert np.isnan(found.p).all()
        np.testing.assert_allclose(found.difference, 0, atol=1e-12)
        assert found.ratio[0] == pytest.approx(1)
        assert math.isnan(found.ratio[1])
