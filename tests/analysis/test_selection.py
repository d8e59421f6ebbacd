"""Token selection: invariances, the published formulas in plain loops, and q-values."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.measures import selection
from analysis.measures.multiple_testing import benjamini_hochberg
from analysis.measures.selection import METHODS, Method, SelectionConfig, choose, others

EVERYTHING = SelectionConfig(most=10**6, min_observations=0, max_q=1)
COLUMNS = [
    *("group", "token_id", "rank", "score", "p", "q"),
    *("count", "weight", "expected", "relative_frequency"),
]


def random_counts(seed: int, groups: int = 4, tokens: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Return samples with many ties and zeros, and a background that has every token."""
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
def test_groups_are_independent(method: Method, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_weights_count_on_the_scale_of_effective_observations(method: Method) -> None:
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
    """Select tokens by the study's heuristic, in plain Python."""
    tokens = [v for v in range(len(sample)) if sample[v] >= config.min_count]
    tokens.sort(key=lambda v: (-sample[v] / train[v], v))
    tokens = tokens[: config.most_frequent]
    tokens.sort(key=lambda v: (-sample[v], -sample[v] / train[v], v))
    return tokens[: config.most_counted]


@given(seed=st.integers(0, 10**6))
def test_study_equals_the_published_heuristic_including_ties(seed: int) -> None:
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
    """Yield every token's score by the method's formula."""
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


def adjusted(p_K: np.ndarray) -> list[float]:
    """Return the q of each p: the least p_j · m / j over all p_j that are not below it."""
    ranked = list(enumerate(sorted(p_K), 1))
    return [min(p_j * len(p_K) / j for j, p_j in ranked if p_j >= p) for p in p_K]


@given(
    seed=st.integers(0, 10**6),
    num_families=st.integers(1, 3),
    length=st.integers(1, 12),
    left_out=st.integers(0, 5),
    padding=st.integers(0, 5),
)
def test_q_equals_benjamini_and_hochbergs_in_a_loop(
    seed: int, num_families: int, length: int, left_out: int, padding: int
) -> None:
    """Tests with p = 1 may be left out, and families may be padded with p = 1."""
    p_GK = np.random.default_rng(seed).choice([0.001, 0.01, 0.02, 0.4, 1], (num_families, length))
    padded_GK = np.hstack([p_GK, np.ones((num_families, padding))])
    found_GK = benjamini_hochberg(padded_GK, np.full(num_families, length + left_out))
    for p_K, q_K in zip(p_GK, found_GK, strict=True):
        wanted = adjusted(np.concatenate([p_K, np.ones(left_out)]))[:length]
        np.testing.assert_allclose(q_K, wanted + [1.0] * padding, rtol=0, atol=1e-15)


@given(seed=st.integers(0, 10**6), max_q=st.sampled_from([0.01, 0.05, 0.3, 1.0]))
def test_q_of_chosen_tokens_is_adjusted_over_all_tokens(seed: int, max_q: float) -> None:
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


def test_a_missing_p_stays_nan_and_counts_as_a_test() -> None:
    q_K = benjamini_hochberg(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(q_K, [0.03, np.nan, 0.06])
