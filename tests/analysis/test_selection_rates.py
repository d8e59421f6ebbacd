"""Token selection: error rates, backgrounds, and refused settings."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.measures.selection import METHODS, Method, SelectionConfig, choose, others
from capture.errors import ConfigError

EVERYTHING = SelectionConfig(most=10**6, min_observations=0, max_q=1)
COLUMNS = [
    *("group", "token_id", "rank", "score", "p", "q"),
    *("count", "weight", "expected", "relative_frequency"),
]


# --- error rates ----------------------------------------------------------------------------------


def test_under_the_null_p_is_uniform_at_five_percent() -> None:
    rng = np.random.default_rng(0)
    share_V = rng.dirichlet(np.full(50, 2.0))
    sample_GV = rng.multinomial(200_000, share_V, 400).astype(float)
    p_M = choose("odds", sample_GV, share_V, EVERYTHING)["p"]
    # 20,000 tests that are nearly independent: the standard error is 0.0015.
    assert (p_M < 0.05).sum() / sample_GV.size == pytest.approx(0.05, abs=0.006)


def test_under_the_null_rare_tokens_keep_the_false_discovery_rate() -> None:
    rng = np.random.default_rng(1)
    share_V = rng.dirichlet(np.full(3000, 0.1))
    sample_GV = rng.multinomial(2000, share_V, 300).astype(float)
    config = SelectionConfig(min_observations=0, max_q=0.1)
    found = choose("odds", sample_GV, share_V, config)
    # Under the null, at most a share max_q of the groups has any false discovery.
    assert found["group"].nunique() / 300 < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 300)


def test_the_false_discovery_rate_holds_among_planted_tokens() -> None:
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


def test_the_lower_bound_discounts_the_ratio_of_a_rare_token() -> None:
    background_V = np.array([1.0, 2000, 97999])
    sample_GV = np.array([[6.0, 4000, 45994]])  # both over-represented, twelvefold and fourfold
    bound = choose("odds", sample_GV, background_V, SelectionConfig(max_q=1))
    estimate = choose("odds", sample_GV, background_V, SelectionConfig(max_q=1, confidence=0.5))
    assert estimate["token_id"].tolist() == [0, 1]
    gap = estimate.set_index("token_id")["score"] - bound.set_index("token_id")["score"]
    assert gap[0] > 10 * gap[1]


# --- backgrounds ----------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6))
def test_others_sum_over_every_other_group(seed: int) -> None:
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
    # The others have 241 in all and 60 of their rarest token, so token 0 is given 30.
    assert first["relative_frequency"] == pytest.approx((50 / 150) / (30 / 241))
    assert np.isfinite(found.drop(columns=["p", "q"])).all(axis=None)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_sample_or_background_gives_no_rows(method: Method) -> None:
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
def test_a_sample_of_one_token_has_finite_scores(method: Method) -> None:
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
