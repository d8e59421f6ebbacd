"""The horizon: exponents of known growth, their intervals, and where reliability ends."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.estimates.growth import LIMIT, exponent_of
from capture.unrolled.horizon import horizon


@given(rate=st.floats(-0.2, 0.2), steps=st.integers(2, 300))
def test_constant_growth_is_found_exactly(rate: float, steps: int) -> None:
    back_S = np.arange(steps, 0, -1)
    found = horizon(np.exp(rate * back_S), 1.0)
    assert found.exponent.per_step == pytest.approx(rate, abs=1e-9)
    assert found.exponent.high - found.exponent.low < 1e-6
    assert found.growth == pytest.approx(math.exp(rate * steps))
    assert found.largest == pytest.approx(max(1.0, math.exp(rate * steps)))


@given(scale=st.floats(1e-6, 1e6))
def test_the_scale_of_a_query_does_not_matter(scale: float) -> None:
    norm_S = np.exp(np.random.default_rng(0).normal(size=50).cumsum())
    found, wanted = horizon(norm_S * scale, scale), horizon(norm_S, 1.0)
    assert found.exponent.per_step == pytest.approx(wanted.exponent.per_step)
    assert found.first_reliable == wanted.first_reliable


def test_contributions_before_the_limit_was_passed_are_unreliable() -> None:
    norm_S = np.array([5 * LIMIT, 1.0, 2 * LIMIT, 10.0, 2.0])
    assert horizon(norm_S, 1.0, first_step=100).first_reliable == 103
    assert horizon(norm_S / LIMIT, 1.0, first_step=100).first_reliable == 100
    assert horizon(np.array([math.inf, 1.0]), 1.0).first_reliable == 1


def test_steps_before_a_query_was_given_up_are_no_part_of_its_growth() -> None:
    known_S = np.array([5 * LIMIT, 1.0, 2.0])
    found = horizon(np.append([math.nan, math.nan], known_S), 1.0, first_step=100)
    assert found == horizon(known_S, 1.0, first_step=102)
    assert (found.growth, found.first_reliable, found.computed_from) == (5 * LIMIT, 103, 102)


def test_the_interval_of_random_growth_holds_the_truth_at_its_rate() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = exponent_of(rng.normal(0.01, 0.1, size=160))
        held += found.low <= 0.01 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_chaos_is_claimed_of_random_walks_at_no_more_than_the_stated_rate() -> None:
    """Law 14: the null is training in which changes neither grow nor shrink."""
    rng = np.random.default_rng(1)
    claimed = sum(exponent_of(rng.normal(0, 0.1, size=160)).chaotic for _ in range(400))
    assert claimed / 400 <= 0.05
    assert exponent_of(rng.normal(0.1, 0.1, size=160)).chaotic


def test_few_steps_and_a_query_of_nothing() -> None:
    assert not exponent_of(np.array([5.0])).chaotic
    assert exponent_of(np.array([])).per_step == 0
    found = horizon(np.zeros(4), 0.0, first_step=3)
    assert (found.growth, found.largest, found.first_reliable) == (1.0, 1.0, 3)
