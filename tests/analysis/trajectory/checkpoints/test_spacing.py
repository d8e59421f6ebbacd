"""Steps to measure: log-spaced ones are spread, keep both ends, and lists are read exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.trajectory.checkpoints.spacing import choose_steps, listed, log_spaced
from capture.errors import ConfigError


@given(steps=st.sets(st.integers(0, 5000), min_size=2, max_size=60), count=st.integers(2, 20))
def test_log_spaced_steps_are_available_and_keep_both_ends(steps: set[int], count: int) -> None:
    chosen = log_spaced(sorted(steps), count)
    assert set(chosen) <= steps
    assert len(chosen) == min(count, len(steps))
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1]) == (min(steps), max(steps))


def test_dense_checkpoints_are_evenly_spread_by_logarithm() -> None:
    chosen = np.array(log_spaced(range(100_001), 11))
    gaps = np.diff(np.log1p(chosen))
    assert gaps.max() / gaps[2:].min() < 1.1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0,10", [0, 10]), ("3:6", [3, 4, 5]), ("20:41:10,0", [0, 20, 30, 40]), ("5,5,6", [5, 6])],
)
def test_a_list_names_its_steps(text: str, wanted: list[int]) -> None:
    assert listed(text, 100) == wanted


@pytest.mark.parametrize("text", ["", "a", "1-2", "5:3", "1:2:0", "1,,2", "0:999999999", "-1", "²"])
def test_a_malformed_list_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--steps: got"):
        listed(text, 10**12)


def test_a_step_after_the_last_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 11, but the last checkpoint is at 10"):
        choose_steps("0,11", [0, 10], 5, "runs/x")


@pytest.mark.parametrize(("wanted", "available"), [("log", [0]), ("all", []), ("7", [0, 10])])
def test_one_checkpoint_is_no_trajectory(wanted: str, available: list[int]) -> None:
    with pytest.raises(ConfigError, match="a trajectory needs 2 checkpoints"):
        choose_steps(wanted, available, 5, "runs/x")
