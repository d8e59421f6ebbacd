"""Confirmation finds planted pairs, and nothing where the record has nothing to do with effects."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.faithfulness.confirmed_pairs import Verdicts
from analysis.measures.confirmation import (
    Changes,
    confirmation_p,
    confirmation_q,
    no_effect_p,
    not_new_p,
    unspecific_p,
)

S, W, NAMED = 60, 120, 6
FAMILY = np.repeat([0, 1], S // 2)


def noise(seed: int, planted: np.ndarray | None = None) -> Changes:
    """Return changes of neurons that differ in size and in how far they move every token."""
    rng = np.random.default_rng(seed)
    count_W = rng.integers(10, 300, W)
    scale_S1 = np.exp(rng.normal(size=(S, 1)))
    # Real neurons move every token a little, each by another amount: zero is no null for them.
    mean_SW = scale_S1 * (rng.normal(size=(S, 1)) + rng.standard_t(4, size=(S, W))) / 10
    error_SW = np.broadcast_to(scale_S1 / np.sqrt(count_W), (S, W)).copy()
    if planted is not None:
        mean_SW = mean_SW - 3 * scale_S1 * planted
    mean_SW = mean_SW + error_SW * rng.normal(size=(S, W))
    overall_S = (mean_SW * count_W).sum(1) / count_W.sum()
    return Changes(mean_SW, error_SW, count_W, overall_S, scale_S1[:, 0])


def names(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    named_SW = np.zeros((S, W), bool)
    for own_W in named_SW:
        own_W[rng.permutation(W)[:NAMED]] = True
    return named_SW


def confirmed(changes: Changes, named_SW: np.ndarray) -> np.ndarray:
    return confirmation_q(confirmation_p(changes, named_SW, FAMILY), named_SW) <= 0.05


def test_random_names_are_not_confirmed() -> None:
    found = [confirmed(noise(seed), names(100 + seed)) for seed in range(40)]
    assert sum(hits.any() for hits in found) <= 6  # 40 · 5 % = 2 expected
    shares = [hits.sum() / (S * NAMED) for hits in found]
    assert np.mean(shares) <= 0.05
    neurons = [hits.any(1).mean() for hits in found]
    assert np.mean(neurons) <= 0.05


def test_p_of_random_names_is_as_small_as_chance_makes_it() -> None:
    p = [unspecific_p(noise(seed), names(seed + 9), FAMILY)[names(seed + 9)] for seed in range(60)]
    p_J = np.concatenate(p)
    for level in (0.002, 0.01, 0.05, 0.2):
        assert (p_J <= level).mean() <= 1.2 * level + 0.001
    assert (p_J <= 0.05).mean() >= 0.035


def test_planted_pairs_are_confirmed_whatever_the_size_of_the_neuron() -> None:
    named_SW = names(1)
    planted_SW = named_SW & (np.cumsum(named_SW, axis=1) <= 2)
    found = confirmed(noise(0, planted_SW), named_SW)
    assert found[planted_SW].mean() > 0.8
    assert found[named_SW & ~planted_SW].mean() <= 0.05
    assert found.any(1).mean() > 0.9


def test_planted_effects_under_other_names_are_not_confirmed() -> None:
    planted_SW = names(1)
    found = confirmed(noise(0, planted_SW), names(2) & ~planted_SW)
    assert found.sum() == 0


def test_p_of_no_effect_equals_a_t_test() -> None:
    rng = np.random.default_rng(0)
    x_N = rng.normal(0.3, 1, size=25)
    count_V = np.array([25, 1, 0])
    sums = (np.array([[x_N.sum(), 0.1, 0]]), np.array([[(x_N**2).sum(), 0.01, 0]]))
    changes = Changes.of_sums(*sums, count_V, np.array([0, 1]))
    wanted = stats.ttest_1samp(x_N, 0)
    p_SW = no_effect_p(changes)
    assert p_SW[0, 0] == pytest.approx(wanted.pvalue)
    assert p_SW[0, 1] == 1
    low_SW, high_SW = changes.intervals()
    ends = wanted.confidence_interval()
    assert (low_SW[0, 0], high_SW[0, 0]) == pytest.approx((ends.low, ends.high))
    assert changes.overall_S[0] == pytest.approx((x_N.sum() + 0.1) / 26)


def test_an_effect_that_the_initial_weights_had_on_other_text_is_not_confirmed() -> None:
    """The names are those of large effects of the initial weights, as those of the first steps."""
    named_SW, passed = names(1), []
    planted_SW = named_SW & (np.cumsum(named_SW, axis=1) <= 2)
    for seed in range(10):
        one, other = (measured(noise(seed, planted_SW), again) for again in (1, 2))
        verdict = Verdicts.of(one, other, named_SW, FAMILY, 0.05)
        passed.append(verdict.confirmed_SW.sum() / (verdict.q_SW <= 0.05).sum())
        larger_SW = np.abs(one.mean_SW) > other.mean_SW * np.sign(one.mean_SW)
        assert larger_SW[planted_SW].mean() > 0.4  # sizes alone would let half of them pass
    assert np.mean(passed) <= 0.05


def test_old_effects_hide_no_new_ones() -> None:
    """Half of the neurons had their effects before training, the others have learned theirs."""
    named_SW = names(1)
    planted_SW = named_SW & (np.cumsum(named_SW, axis=1) <= 2)
    old_S1 = np.arange(S)[:, None] % 2 == 0
    one, other = (measured(noise(0, planted_SW & kept), 1) for kept in (True, old_S1))
    verdict = Verdicts.of(one, other, named_SW, FAMILY, 0.05)
    assert verdict.confirmed_SW[planted_SW & ~old_S1].mean() > 0.7
    assert verdict.confirmed_SW[planted_SW & old_S1].mean() <= 0.05


def measured(changes: Changes, seed: int) -> Changes:
    """Return the changes on another text: the same means, with other errors of sampling."""
    rng = np.random.default_rng(seed)
    mean_SW = changes.mean_SW + changes.error_SW * rng.normal(size=(S, W))
    return replace(changes, mean_SW=mean_SW)


@pytest.mark.parametrize("sign", [1, -1])
def test_p_of_what_is_not_new_equals_welch_s(sign: int) -> None:
    """With another sign before training, the whole difference is new."""
    rng = np.random.default_rng(0)
    x_N, y_N = rng.normal(-1.2, 1, size=25), sign * rng.normal(-0.3, 1.5, size=40)
    wanted = stats.ttest_ind(x_N, y_N, equal_var=False, alternative="less").pvalue
    assert not_new_p(of_samples(x_N), of_samples(y_N))[0, 0] == pytest.approx(wanted)


def test_one_position_shows_nothing_new() -> None:
    one, many = of_samples(np.array([-2.0])), of_samples(np.arange(5.0))
    assert not_new_p(one, many)[0, 0] == not_new_p(many, one)[0, 0] == 0.5


def of_samples(x_N: np.ndarray) -> Changes:
    sums = (np.array([[x_N.sum()]]), np.array([[(x_N**2).sum()]]))
    return Changes.of_sums(*sums, np.array([len(x_N)]), np.array([0]))


def test_a_neuron_that_changes_nothing_is_not_confirmed() -> None:
    changes = noise(0, names(1))
    changes.mean_SW[3] = changes.error_SW[3] = changes.overall_S[3] = 0
    p_SW = confirmation_p(changes, names(1), FAMILY)
    assert (p_SW[3] == 1).all()
    assert not np.isnan(p_SW).any()
