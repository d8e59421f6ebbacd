"""Smoothness: exponents that are known, verdicts, and training that is stable or chaotic."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_config

from capture.config.settings import Config
from capture.errors import CaptureError, ConfigError, InfluenceError
from capture.estimates.growth import LIMIT, Exponent, reach
from capture.retraining.smoothness import (
    Smoothness,
    SmoothnessConfig,
    growth_exponent,
    measure_smoothness,
    verdict,
)

FEW = SmoothnessConfig(steps=20, directions=2)


def measured(config: Config) -> Smoothness:
    return measure_smoothness(config, FEW)


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> Smoothness:
    folder = tmp_path_factory.mktemp("smooth")
    return measured(tiny_config(folder, "training.learning_rate=0.05", "training.clip=10"))


@given(rate=st.floats(-0.3, 0.3), steps=st.integers(4, 60))
def test_the_exponent_of_a_linear_map_is_found(rate: float, steps: int) -> None:
    distance_KS = 1e-9 * np.exp(rate * np.arange(1, steps + 1))[None].repeat(2, 0)
    assert growth_exponent(distance_KS, 1e-9).per_step == pytest.approx(rate, abs=1e-9)


def test_a_verdict_depends_on_the_interval_and_the_length_of_the_run() -> None:
    allowed = math.log(LIMIT) / 100
    assert verdict(Exponent(0.0, -0.01, allowed, 50), 100) == "smooth"
    assert verdict(Exponent(0.1, allowed * 1.01, 0.2, 50), 100) == "chaotic"
    assert verdict(Exponent(0.1, allowed * 1.01, 0.2, 50), 20) == "smooth"
    assert verdict(Exponent(0.1, 0.0, 0.2, 50), 100) == "unclear"
    assert verdict(Exponent(5.0, -math.inf, math.inf, 1), 100) == "unclear"


def test_reach_is_the_number_of_steps_to_the_limit() -> None:
    assert reach(Exponent(0.1, 0.0, 0.2, 9)) == pytest.approx(math.log(LIMIT) / 0.1)
    assert reach(Exponent(-0.1, -0.2, 0.0, 9)) == math.inf


def test_slow_training_is_smooth(smooth: Smoothness) -> None:
    assert smooth.verdict == "smooth"
    assert smooth.distance_KS.shape == (2, 20)
    assert 0.5 < smooth.growth < 3
    assert smooth.clipped == 0
    assert 0 < smooth.rounding < 1e-5
    assert smooth.run_steps == 28


def test_a_schedule_that_decays_makes_the_run_shorter(tmp_path: Path, smooth: Smoothness) -> None:
    """Steps at a lower learning rate count for less; a cosine halves the mean rate."""
    constant = tiny_config(tmp_path, "training.schedule.kind=constant", name="constant")
    assert measured(constant).equal_steps == pytest.approx(28)
    cosine = tiny_config(tmp_path, "training.schedule.kind=cosine", name="cosine")
    found = measure_smoothness(cosine, SmoothnessConfig(steps=8, directions=1)).equal_steps
    factors = (1 + np.cos(np.pi * np.arange(28) / 28)) / 2
    assert found == pytest.approx(factors.sum() / factors[2:8].mean())


def test_training_at_a_learning_rate_far_too_large_is_chaotic(tmp_path: Path) -> None:
    found = measured(tiny_config(tmp_path, "training.learning_rate=20", "training.clip=1"))
    assert found.verdict == "chaotic"
    assert found.growth > 100
    assert found.clipped > 0.5


def test_half_the_change_gives_the_same_growth(tmp_path: Path, smooth: Smoothness) -> None:
    """The change is small enough for growth to be linear in it."""
    config = tiny_config(tmp_path, "training.learning_rate=0.05", "training.clip=10")
    half = measure_smoothness(config, SmoothnessConfig(steps=20, directions=2, size=5e-10))
    np.testing.assert_allclose(half.distance_KS * 2, smooth.distance_KS, rtol=1e-3)


def test_nothing_is_stored_and_every_step_is_reported(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "training.schedule.warmup_steps=3")
    reports: list[tuple[int, int]] = []
    few = SmoothnessConfig(steps=8, directions=1)
    measure_smoothness(config, few, lambda *given: reports.append(given))
    assert reports == [(step + 1, 11) for step in range(11)]
    assert not Path(config.run.uri).exists()


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="steps: got 7, must be at least 8"):
        SmoothnessConfig(steps=7)
    with pytest.raises(InfluenceError, match=r"step \d+: training has diverged. Lower training"):
        measured(tiny_config(tmp_path, "training.learning_rate=1e30", "training.clip=1e9"))
    with pytest.raises(CaptureError, match=r"run\.loop"):
        measured(tiny_config(tmp_path, "run.loop=own"))
