"""Change points, suddenness and halves of curves whose answers are known, and their nulls."""

import numpy as np
import pandas as pd
import pytest
import ruptures

from analysis.measures.permutation import p_value
from analysis.transitions.curves import COLUMNS, Curve, curves_of
from analysis.transitions.shape.half import find_half
from analysis.transitions.shape.segments import Sums, cut_draws, find_cuts, first_gains, gains
from analysis.transitions.shape.sudden import (
    LEAST,
    share_at,
    shares,
    smooth_curves,
    steepest,
    walks,
)

STEPS = np.unique(np.geomspace(1, 5001, 45).astype(int)) - 1


def curve(value, error: float = 0.0, steps=STEPS) -> Curve:
    ones = np.ones(len(steps))
    return Curve("m", "", steps.astype(float), np.asarray(value, float), error * ones, ones)


def jump(at: float, noise: float = 0.0, seed: int = 0) -> Curve:
    rng = np.random.default_rng(seed)
    return curve((at <= STEPS) + noise * rng.standard_normal(len(STEPS)))


def power_law(rng: np.random.Generator) -> Curve:
    scale, power = np.exp(rng.uniform(0, 8)), rng.uniform(0.2, 4)
    noise = np.exp(rng.uniform(-6, -1.5))
    value = (1 + (1 + STEPS) / scale) ** -power
    value = (value - value.min()) / np.ptp(value)
    return curve(value + noise * rng.standard_normal(len(STEPS)))


def p_smooth(each: Curve, rng: np.random.Generator) -> float:
    found = shares(each.u_K, each.value_K[None])[0]
    return p_value(found, shares(each.u_K, smooth_curves(each, 99, rng)))


def called_sudden(each: Curve, rng: np.random.Generator) -> bool:
    found = shares(each.u_K, each.value_K[None])[0]
    null = shares(each.u_K, walks(each.u_K, 99, rng))
    return bool(found >= LEAST and p_smooth(each, rng) <= 0.05 and p_value(found, null) <= 0.05)


def test_residuals_from_sums_are_those_of_a_fit_of_each_segment():
    rng = np.random.default_rng(0)
    u, y, noise = np.sort(rng.random(12)), rng.normal(5, 1, 12), rng.uniform(0.5, 2, 12)
    sums = Sums.of(u, y[None], noise)
    for start, end in [(0, 12), (2, 7), (8, 12)]:
        own = slice(start, end)
        design = np.stack([np.ones(end - start), u[own]], 1) / noise[own, None]
        wanted = np.linalg.lstsq(design, y[own] / noise[own], rcond=None)[1][0]
        assert sums.residual(start, end)[0] == pytest.approx(wanted)


def test_cuts_are_those_of_exhaustive_search_with_the_same_penalty():
    each = jump(200, noise=0.05)
    sums = Sums.of(each.u_K, each.value_K[None], each.noise_K)
    (cut,) = find_cuts(each)
    assert each.step_K[cut - 1] < 200 <= each.step_K[cut]
    assert sums.best_cut(0, len(STEPS))[0][0] == cut
    # ruptures' own cost of lines, on the same rows, agrees.
    rows = np.stack([each.value_K, np.ones_like(each.u_K), each.u_K], 1) / each.noise_K[:, None]
    search = ruptures.Pelt("linear", min_size=3, jump=1).fit(rows)
    assert search.predict(pen=4 * np.log(len(STEPS))) == [cut, len(STEPS)]


def test_a_jump_is_found_within_its_interval_and_noise_alone_is_not_cut():
    for seed in range(5):
        each = jump(300, noise=0.1, seed=seed)
        cuts = find_cuts(each)
        place = int(np.argmax(gains(each, cuts)))
        drawn = cut_draws(each, cuts, place, 99, np.random.default_rng(seed))
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert low <= np.searchsorted(STEPS, 300) <= high
    rng = np.random.default_rng(1)
    cut = [bool(find_cuts(curve(rng.standard_normal(len(STEPS))))) for _ in range(40)]
    assert np.mean(cut) <= 0.1  # the penalty takes the noise as known; p says what is claimed


def test_law_14_smooth_curves_are_called_sudden_in_at_most_5_percent():
    rng = np.random.default_rng(0)
    assert np.mean([called_sudden(power_law(rng), rng) for _ in range(200)]) <= 0.05
    assert np.mean([p_smooth(power_law(rng), rng) <= 0.05 for _ in range(200)]) <= 0.1


def test_law_14_random_walks_are_called_sudden_in_at_most_5_percent():
    rng = np.random.default_rng(0)
    u = np.log1p(STEPS)
    found = [called_sudden(curve(walk), rng) for walk in walks(u, 200, rng)]
    assert np.mean(found) <= 0.05


def test_a_jump_and_a_steep_logistic_are_called_sudden_and_a_slow_one_is_not():
    rng = np.random.default_rng(0)
    u = np.log1p(STEPS)
    assert called_sudden(jump(300, noise=0.02), rng)
    for scale, wanted in ((0.08, True), (1.0, False)):
        value = 1 / (1 + np.exp(-(u - 6) / scale)) + 0.01 * rng.standard_normal(len(u))
        assert called_sudden(curve(value), rng) == wanted
    low, high = steepest(jump(300))
    assert low <= 300 <= high * 1.2
    assert share_at(jump(300), np.log1p(300)) > 0.9
    assert share_at(jump(300), np.log1p(20)) == 0


def test_a_jump_explains_more_than_walks_and_power_laws_do():
    rng = np.random.default_rng(2)
    each = jump(300, noise=0.05)
    found = gains(each, find_cuts(each)).max()
    for null in (walks(each.u_K, 99, rng), smooth_curves(each, 99, rng)):
        assert p_value(found, first_gains(each.u_K, null, each.noise_K)) <= 0.05


def test_the_half_lies_in_its_interval_as_often_as_the_interval_says():
    u, rng, hits = np.log1p(STEPS), np.random.default_rng(0), 0
    for _ in range(60):
        value = 3 - 1 / (1 + np.exp(-(u - 5) / 0.5)) + 0.05 * rng.standard_normal(len(u))
        half = find_half(curve(value, error=0.05), 99, rng)
        assert not half.rises
        hits += half.low <= np.expm1(5) <= half.high
    assert hits >= 54


def test_the_half_of_a_clean_jump_is_the_gap_that_holds_it():
    half = find_half(jump(300), 99, np.random.default_rng(0))
    assert half.low < 300 <= half.high
    assert half.high / half.low < 1.3


def test_a_curve_that_returns_has_its_half_on_the_way_out():
    u = np.log1p(STEPS)
    half = find_half(curve(1.8 - 1.3 * np.exp(-((u - 4) ** 2))), 99, np.random.default_rng(0))
    assert half.low < half.step < half.high < np.expm1(4)


def test_many_points_are_averaged_in_bins_and_their_noise_is_found():
    rng = np.random.default_rng(0)
    steps = np.arange(5000)
    frame = pd.DataFrame({"step": steps, "metric": "loss", "component": "", "n": 1})
    frame["value"], frame["standard_error"] = 3 + rng.normal(0, 0.2, 5000), np.nan
    (found,) = curves_of(frame[COLUMNS])
    assert 40 < len(found.step_K) <= 120
    assert found.noise_K[-1] == pytest.approx(0.2 / np.sqrt(found.count_K[-1]), rel=0.5)
    assert not found.changes
    constant = curves_of(frame.assign(value=1.0)[COLUMNS])[0]
    assert not constant.changes


def test_a_change_within_the_error_over_datums_is_none():
    u = np.log1p(STEPS)
    assert curve(u / 8, error=0.1).changes
    assert not curve(u / 8, error=0.5).changes
