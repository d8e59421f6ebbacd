"""Selection of tokens: laws, the published formulas in plain loops, and honest error rates."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis import selection
from analysis.multiple_testing import benjamini_hochberg
from analysis.selection import METHODS, Method, SelectionConfig, choose, others
from capture.errors import ConfigError

EVERYTHING = SelectionConfig(most=10**6, min_observations=0, max_q=1)
COLUMNS = [
    *("group", "token_id", "rank", "score", "p", "q"),
    *("count", "weight", "expected", "relative_frequency"),
]


def random_counts(seed: int, groups: int = 4, tokens: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Samples with many ties and zeros, and a background that has every token."""
    rng = np.random.default_rng(seed)
    rate_V = rng.pareto(1, tokens) * 3
    background_V = rng.poisson(20 * rate_V) + 1.0
    return rng.poisson(rate_V, (groups, tokens)).astype(np.float64), background_V


def assert_same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-7, atol=1e-9)


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 10**6), scale=st.integers(-20, 20))
def test_the_scale_of_the_background_changes_nothing(method: Method, seed: int, scale: int) -> None:
    sample_GV, background_V = random_counts(seed)
    config = SelectionConfig(min_count=2, most_frequent=8)
    found = choose(method, sample_GV, 2.0**scale * background_V, config)  # to the last bit
    pd.testing.assert_frame_equal(found, choose(method, sample_GV, background_V, config))


@pytest.mark.parametrize("method", METHODS)
def test_any_scale_of_the_background_changes_nothing_but_rounding(method: Method) -> None:
    sample_GV, background_V = random_counts(3)
    config = SelectionConfig(min_count=2, most_frequent=8)
    found = choose(method, sample_GV, 0.3 * background_V, config)
    assert_same(found, choose(method, sample_GV, background_V, config))


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 10**6))
def test_other_names_of_the_tokens_change_only_the_names(method: Method, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample_GV, background_V = random_counts(seed)
    sample_GV *= rng.uniform(1, 1.1, sample_GV.shape)  # no ties, which go by name
    order_V = rng.permutation(sample_GV.shape[1])
    config = SelectionConfig(min_count=2, most_frequent=8, min_observations=1, max_q=0.5)
    found = choose(method, sample_GV[:, order_V], background_V[order_V], config)
    found["token_id"] = order_V[found["token_id"]].astype(np.int32)
    assert_same(found, choose(method, sample_GV, background_V, config))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["shared", "own"])
def test_groups_do_not_touch_each_other(
    method: Method, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_GV, background = random_counts(0, groups=7)
    background = background if kind == "shared" else others(sample_GV)
    effective_G = sample_GV.sum(1) / 2
    config = SelectionConfig(min_count=1, min_observations=0, max_q=1)
    whole = choose(method, sample_GV, background, config, effective_G)
    alone = [
        choose(
            method,
            sample_GV[group : group + 1],
            background if kind == "shared" else background[group : group + 1],
            config,
            effective_G[group : group + 1],
        ).assign(group=np.int32(group))
        for group in range(7)
    ]
    assert_same(whole, pd.concat(alone, ignore_index=True))
    monkeypatch.setattr(selection, "CELLS_AT_ONCE", 70)  # two groups at a time
    assert_same(choose(method, sample_GV, background, config, effective_G), whole)


@pytest.mark.parametrize("method", METHODS)
def test_weights_count_as_much_as_their_observations(method: Method) -> None:
    sample_GV, background_V = random_counts(1)
    config = SelectionConfig(min_count=3, most_frequent=8, min_observations=1, max_q=1)
    plain = choose(method, sample_GV, background_V, config)
    weighed = choose(method, sample_GV / 1024, background_V, config, sample_GV.sum(1))
    assert len(plain)
    assert_same(weighed[["group", "token_id", "count"]], plain[["group", "token_id", "count"]])
    np.testing.assert_allclose(weighed["score"], plain["score"])
    np.testing.assert_allclose(weighed["weight"], plain["weight"] / 1024)
    np.testing.assert_allclose(weighed["expected"], plain["expected"] / 1024)


@pytest.mark.parametrize("method", METHODS)
def test_columns_ranks_and_types(method: Method) -> None:
    sample_GV, background_V = random_counts(2)
    config = SelectionConfig(min_count=1, min_observations=0, max_q=1, most=3, most_counted=3)
    found = choose(method, sample_GV, background_V, config)
    assert list(found.columns) == COLUMNS
    assert [str(found[name].dtype) for name in COLUMNS] == ["int32"] * 3 + ["float64"] * 7
    assert found.groupby("group")["rank"].agg(list).tolist() == [[0, 1, 2]] * 4
    assert (found.groupby("group")["score"].diff().dropna() <= 0).all()
    assert found[["p", "q"]].notna().all(axis=None) == (method in ("odds", "rate"))
    expected_GV = sample_GV.sum(1, keepdims=True) * background_V / background_V.sum()
    np.testing.assert_allclose(
        found["expected"], expected_GV[found["group"], found["token_id"]], rtol=1e-12
    )


# --- against plain loops --------------------------------------------------------------------------


def notable(sample: list[int], train: list[int], config: SelectionConfig) -> list[int]:
    """The study's heuristic, word by word."""
    tokens = [v for v in range(len(sample)) if sample[v] >= config.min_count]
    tokens.sort(key=lambda v: (-sample[v] / train[v], v))
    tokens = tokens[: config.most_frequent]
    tokens.sort(key=lambda v: (-sample[v], -sample[v] / train[v], v))
    return tokens[: config.most_counted]


@given(seed=st.integers(0, 10**6))
def test_study_is_the_published_heuristic_to_the_last_tie(seed: int) -> None:
    rng = np.random.default_rng(seed)
    train_V = rng.integers(1, 60, 40)
    sample_GV = rng.integers(0, 30, (5, 40))
    for config in (SelectionConfig(), SelectionConfig(min_count=4, most_frequent=9)):
        found = choose("study", sample_GV.astype(float), train_V.astype(float), config)
        for group, sample_V in enumerate(sample_GV.tolist()):
            own = found[found["group"] == group]
            assert own["token_id"].tolist() == notable(sample_V, train_V.tolist(), config)
            assert own["score"].tolist() == own["count"].tolist()


def divergence(sample: list[float], base: list[float], without: int) -> float:
    pairs = [(s, b) for v, (s, b) in enumerate(zip(sample, base, strict=True)) if v != without]
    s_sum, b_sum = (math.fsum(column) for column in zip(*pairs, strict=True))
    return math.fsum(s / s_sum * math.log(s / s_sum / (b / b_sum)) for s, b in pairs if s)


def scores(method: Method, sample: list[float], base: list[float]) -> Iterator[float]:
    """Every token's score, one formula after the other."""
    n, total = math.fsum(sample), math.fsum(base)
    ratios = [s / n / (b / total) for s, b in zip(sample, base, strict=True)]
    present = np.array([(s, r) for s, r in zip(sample, ratios, strict=True) if s])
    for v, (count, ratio) in enumerate(zip(sample, ratios, strict=True)):
        share = base[v] / total
        match method:
            case "product":
                yield (1 + math.log(count)) * (1 + math.log(ratio)) if count else math.nan
            case "mahalanobis":
                away = np.array([count, ratio]) - present.mean(0)
                yield math.sqrt(away @ np.linalg.inv(np.cov(present.T, ddof=0)) @ away)
            case "kl":
                yield divergence(sample, base, -1) - divergence(sample, base, v)
            case "odds":
                token = count + 100 * share
                rest = n + 100 - token
                estimate = math.log(token / rest) - math.log(share / (1 - share))
                yield estimate - stats.norm.ppf(0.95) * math.sqrt(1 / token + 1 / rest)


@pytest.mark.parametrize("method", ["product", "mahalanobis", "kl", "odds"])
@given(seed=st.integers(0, 10**6))
def test_scores_equal_the_formulas_in_a_loop(method: Method, seed: int) -> None:
    sample_GV, background_V = random_counts(seed)
    found = choose(method, sample_GV, background_V, EVERYTHING)
    for group, sample in enumerate(sample_GV.tolist()):
        own = found[found["group"] == group]
        wanted = list(scores(method, sample, background_V.tolist()))
        token_M = own["token_id"].to_numpy()
        np.testing.assert_allclose(own["score"], np.array(wanted)[token_M], rtol=1e-6, atol=1e-9)
        relative_V = sample_GV[group] / sample_GV[group].sum() / background_V * background_V.sum()
        assert set(np.flatnonzero(relative_V > 1 + 1e-9)) <= set(token_M)
        assert (own["relative_frequency"] > 1).all()


def test_p_is_the_exact_binomial_tail_and_near_g_squared_for_frequent_tokens() -> None:
    background_V = np.array([5.0, 15, 30, 50])
    sample_GV = np.array([[9.0, 15, 31, 45], [600, 1580, 3020, 4800]])
    found = choose("odds", sample_GV, background_V, EVERYTHING)
    assert len(found) == 5
    for row in found.to_dict("records"):
        n, count = int(sample_GV[row["group"]].sum()), int(row["count"])
        share = background_V[row["token_id"]] / 100
        exact = stats.binomtest(count, n, share, alternative="greater").pvalue
        assert row["p"] == pytest.approx(exact, rel=1e-9)
        cells = [count, n - count], [n * share, n * (1 - share)]
        g_squared, two_sided = stats.power_divergence(*cells, lambda_="log-likelihood")
        assert two_sided == pytest.approx(stats.chi2.sf(g_squared, 1))
        if row["group"] == 1:
            assert math.log(row["p"]) == pytest.approx(math.log(two_sided / 2), rel=0.1)


@given(
    seed=st.integers(0, 10**6),
    num_families=st.integers(1, 3),
    length=st.integers(1, 12),
    more=st.integers(0, 5),
)
def test_q_equals_benjamini_and_hochbergs_in_a_loop(
    seed: int, num_families: int, length: int, more: int
) -> None:
    p_GK = np.random.default_rng(seed).choice([0.001, 0.01, 0.02, 0.4, 1], (num_families, length))
    found_GK = benjamini_hochberg(p_GK, np.full(num_families, length + more))
    for p_K, q_K in zip(p_GK, found_GK, strict=True):
        padded_K = np.concatenate([p_K, np.ones(more)])
        np.testing.assert_allclose(q_K, stats.false_discovery_control(padded_K)[:length])


@given(seed=st.integers(0, 10**6), max_q=st.sampled_from([0.01, 0.05, 0.3, 1.0]))
def test_q_of_what_is_chosen_is_that_over_all_tokens(seed: int, max_q: float) -> None:
    sample_GV, background_V = random_counts(seed)
    every = choose("odds", sample_GV, background_V, EVERYTHING)
    config = SelectionConfig(most=10**6, min_observations=0, max_q=max_q)
    found = choose("odds", sample_GV, background_V, config)
    wanted = every[every["q"] <= max_q].reset_index(drop=True)
    assert_same(found.drop(columns="rank"), wanted.drop(columns="rank"))
    for group in range(len(sample_GV)):
        own = every[every["group"] == group]
        p_V = np.ones(sample_GV.shape[1])
        p_V[own["token_id"]] = own["p"]
        np.testing.assert_allclose(own["q"], stats.false_discovery_control(p_V)[own["token_id"]])


@given(seed=st.integers(0, 10**6))
def test_q_is_monotone_in_p_and_not_below_it(seed: int) -> None:
    p_K = np.random.default_rng(seed).random(50) ** 3
    q_K = benjamini_hochberg(p_K)
    order_K = np.argsort(p_K)
    assert (np.diff(q_K[order_K]) >= 0).all()
    assert (q_K >= p_K).all()
    assert (q_K <= 1).all()


def test_a_test_that_could_not_be_made_stays_nan_and_counts() -> None:
    q_K = benjamini_hochberg(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(q_K, [0.03, np.nan, 0.06])


# --- error rates ----------------------------------------------------------------------------------


def test_under_the_null_a_twentieth_of_p_is_below_a_twentieth() -> None:
    rng = np.random.default_rng(0)
    share_V = rng.dirichlet(np.full(50, 2.0))
    sample_GV = rng.multinomial(200_000, share_V, 400).astype(float)
    p_M = choose("odds", sample_GV, share_V, EVERYTHING)["p"]
    # 20,000 tests that are nearly independent: the standard error is 0.0015.
    assert (p_M < 0.05).sum() / sample_GV.size == pytest.approx(0.05, abs=0.006)


def test_under_the_null_rare_tokens_are_not_found_more_often_than_promised() -> None:
    rng = np.random.default_rng(1)
    share_V = rng.dirichlet(np.full(3000, 0.1))
    sample_GV = rng.multinomial(2000, share_V, 300).astype(float)
    config = SelectionConfig(min_observations=0, max_q=0.1)
    found = choose("odds", sample_GV, share_V, config)
    # With nothing to find, a share max_q of the groups (at most) has any false finding.
    assert found["group"].nunique() / 300 < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 300)


def test_of_what_is_found_among_planted_tokens_few_are_false() -> None:
    rng = np.random.default_rng(2)
    share_V = rng.dirichlet(np.full(500, 0.5))
    lift_GV = np.where(rng.random((200, 500)) < 0.02, 3.0, 1.0)
    shares_GV = share_V * lift_GV / (share_V * lift_GV).sum(1, keepdims=True)
    sample_GV = np.stack([rng.multinomial(20_000, share_V) for share_V in shares_GV]).astype(float)
    found = choose("odds", sample_GV, share_V, SelectionConfig(most=500, max_q=0.05))
    is_false_M = lift_GV[found["group"], found["token_id"]] == 1
    assert len(found) > 500
    assert is_false_M.mean() < 0.06


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_token_is_found(method: Method) -> None:
    rng = np.random.default_rng(3)
    share_V = rng.dirichlet(np.full(200, 0.5))
    planted = int(np.argsort(share_V)[100])
    sample_GV = rng.multinomial(5000, share_V, 3).astype(float)
    sample_GV[1, planted] += 400
    found = choose(method, sample_GV, share_V, SelectionConfig())
    assert found[found["group"] == 1].iloc[0]["token_id"] == planted


def test_a_rare_tokens_ratio_is_not_taken_at_its_word() -> None:
    background_V = np.array([1.0, 2000, 97999])
    sample_GV = np.array([[6.0, 4000, 45994]])  # both over-represented, twelvefold and fourfold
    bound = choose("odds", sample_GV, background_V, SelectionConfig(max_q=1))
    estimate = choose("odds", sample_GV, background_V, SelectionConfig(max_q=1, confidence=0.5))
    assert estimate["token_id"].tolist() == [0, 1]
    gap = estimate.set_index("token_id")["score"] - bound.set_index("token_id")["score"]
    assert gap[0] > 10 * gap[1]


# --- backgrounds ----------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6))
def test_others_are_the_sum_without_oneself(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample_GV = rng.random((5, 7)) * (rng.random((5, 7)) < 0.3) * 10.0 ** rng.integers(-6, 6, 7)
    found_GV = others(sample_GV)
    for group in range(5):
        np.testing.assert_allclose(
            found_GV[group], np.delete(sample_GV, group, 0).sum(0), rtol=1e-6, atol=1e-300
        )
    assert (found_GV[(sample_GV > 0) & ((sample_GV > 0).sum(0) == 1)] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_token_that_only_one_group_has_is_still_compared(method: Method) -> None:
    sample_GV = np.array([[50.0, 30, 40, 30], [0, 30, 30, 50], [0, 30, 31, 70]])
    found = choose(method, sample_GV, others(sample_GV), SelectionConfig())
    first = found.iloc[0]
    assert (first["group"], first["token_id"]) == (0, 0)
    # The others have 241 in all, of their rarest token 60: of this one they are taken to have 30.
    assert first["relative_frequency"] == pytest.approx((50 / 150) / (30 / 241))
    assert np.isfinite(found.drop(columns=["p", "q"])).all(axis=None)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_compare_gives_no_rows(method: Method) -> None:
    config = SelectionConfig(min_count=1, min_observations=0)
    empty_GV, one_GV = np.zeros((2, 4)), np.ones((1, 4))
    for sample_GV, background in (
        (empty_GV, np.ones(4)),
        (one_GV, others(one_GV)),
        (np.zeros((0, 4)), np.ones(4)),
    ):
        found = choose(method, sample_GV, background, config)
        assert found.empty
        assert list(found.columns) == COLUMNS


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_of_one_token_has_numbers(method: Method) -> None:
    sample_GV = np.array([[30.0, 0, 0]])
    found = choose(method, sample_GV, np.array([1.0, 5, 10]), SelectionConfig())
    assert found["token_id"].tolist() == [0]
    assert np.isfinite(found.drop(columns=["p", "q"])).all(axis=None)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"min_count": 0}, "selection.min_count: got 0, must be at least 1."),
        ({"most_frequent": 0}, "selection.most_frequent: got 0, must be at least 1."),
        ({"most_counted": -1}, "selection.most_counted: got -1, must be at least 1."),
        ({"most": 0}, "selection.most: got 0, must be at least 1."),
        ({"min_observations": -1}, "selection.min_observations: got -1, must be at least 0."),
        ({"max_q": 0}, "selection.max_q: got 0, must be above 0 and at most 1."),
        ({"max_q": 1.5}, "selection.max_q: got 1.5, must be above 0 and at most 1."),
        ({"prior": 0}, "selection.prior: got 0, must be above 0 and finite."),
        ({"prior": math.inf}, "selection.prior: got inf, must be above 0 and finite."),
        ({"confidence": 1}, "selection.confidence: got 1, must be from 0.5 to below 1."),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SelectionConfig(**values)
    assert str(caught.value) == text
