"""Attention patterns: hand-built heads get the scores that they must, at any block length."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analysis.trajectory.metrics.heads.patterns import attention_patterns, uniform_share
from analysis.trajectory.observed.text import Text, repeated_tokens
from capture.errors import ConfigError

BIG = Text(500, 32, None, None, [], datums=40, seed=1)


class HandBuilt:
    """Attention of four ideal heads, computed from the tokens."""

    def attention(self, token_NT: Tensor) -> list[Tensor]:
        N, T = token_NT.shape
        weight_NHTS = torch.zeros(N, 4, T, T)
        same_NTS = (token_NT[:, :, None] == token_NT[:, None, :]) & torch.ones(T, T).tril(-1).bool()
        for t in range(T):
            weight_NHTS[:, 0, t, max(t - 1, 0)] = 1  # previous token
            weight_NHTS[:, 1, t] = same_NTS[:, t].float()  # duplicate token
            weight_NHTS[:, 2, t, 1:] = same_NTS[:, t, :-1].float()  # what followed it: induction
            weight_NHTS[:, 3, t, : t + 1] = 1 / (t + 1)  # uniform: the null
        return [weight_NHTS]


def scores(text: Text) -> dict[tuple[str, str], float]:
    rows = attention_patterns(HandBuilt(), text)  # pyright: ignore[reportArgumentType]
    return {(row.metric, row.component): row.value for row in rows}


def test_each_ideal_head_scores_one_on_its_own_pattern_alone() -> None:
    found = scores(BIG)
    for head, name in enumerate(("previous_token", "duplicate_token", "induction")):
        assert found[name, f"L0H{head}"] == pytest.approx(1)
        others = [found[name, f"L0H{other}"] for other in range(3) if other != head]
        assert max(others) < 0.01


def test_uniform_attention_scores_the_null() -> None:
    rows = list(attention_patterns(HandBuilt(), BIG))  # pyright: ignore[reportArgumentType]
    uniform = [row for row in rows if row.component == "L0H3"]
    assert [row.value for row in uniform] == pytest.approx([row.null for row in uniform])
    assert uniform[0].null == pytest.approx(uniform_share(BIG.repeated))


def test_a_head_of_fixed_distance_is_no_induction_head() -> None:
    class Fixed:
        def attention(self, token_NT: Tensor) -> list[Tensor]:
            T = token_NT.shape[1]
            back_TS = torch.zeros(T, T)
            back_TS[torch.arange(11, T), torch.arange(T - 11)] = 1
            return [back_TS.expand(len(token_NT), 1, T, T)]

    rows = attention_patterns(Fixed(), BIG)  # pyright: ignore[reportArgumentType]
    (row,) = (row for row in rows if row.metric == "induction")
    assert row.value < 0.35


@given(window=st.integers(8, 40), num_tokens=st.integers(4, 60), seed=st.integers(0, 9))
def test_a_block_stands_twice_at_the_end_of_each_sequence(
    window: int, num_tokens: int, seed: int
) -> None:
    found = repeated_tokens(6, window, num_tokens, seed)
    assert found.token_NT.shape == (6, window)
    assert 1 <= found.token_NT.min() <= found.token_NT.max() < num_tokens
    for token_T, length in zip(found.token_NT, found.length_N, strict=True):
        assert 2 <= length <= window // 2
        assert (token_T[-length:] == token_T[-2 * length : -length]).all()
        if num_tokens > window:
            assert len(np.unique(token_T[:-length])) == window - length


def test_lengths_differ_and_a_seed_gives_the_same_tokens() -> None:
    one, again = repeated_tokens(20, 32, 99, 3), repeated_tokens(20, 32, 99, 3)
    assert (one.token_NT == again.token_NT).all()
    assert len(set(one.length_N.tolist())) > 4


def test_too_short_a_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="windows of 8 tokens"):
        repeated_tokens(3, 7, 50, 0)
