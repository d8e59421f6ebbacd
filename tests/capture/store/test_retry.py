"""Retries are bounded and counted, wait longer each time, and follow transient errors only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.store.retry import LONGEST_WAIT_SECONDS, Retrier, TransientError, wait_seconds


def make_retrier(retries: int, waits: list[float] | None = None) -> Retrier:
    sleep = (lambda seconds: None) if waits is None else waits.append
    return Retrier(retries, first_wait_seconds=0.2, sleep=sleep, draw=lambda: 0.0)


class Flaky:
    """An action that fails a number of times, then returns."""

    def __init__(self, failures: int, *, answered: bool = True) -> None:
        self.failures = failures
        self.calls = 0
        self.answered = answered

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise TransientError(f"failure {self.calls}", self.answered)
        return "answer"


@given(failures=st.integers(0, 12), retries=st.integers(0, 12))
def test_an_action_runs_at_most_once_more_than_the_retries(failures: int, retries: int) -> None:
    action, retrier = Flaky(failures), make_retrier(retries)
    if failures <= retries:
        assert retrier(action) == "answer"
    else:
        with pytest.raises(TransientError, match=f"failure {retries + 1}"):
            retrier(action)
    assert action.calls == min(failures, retries) + 1
    assert retrier.num_retries == action.calls - 1


def test_waits_double_up_to_the_longest() -> None:
    waits: list[float] = []
    make_retrier(9, waits)(Flaky(9))
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0, 20.0]


@given(failures=st.integers(1, 2000), draw=st.floats(0, 1, exclude_max=True))
def test_jitter_shortens_a_wait_by_at_most_a_half(failures, draw) -> None:
    wait, longest = wait_seconds(failures, 0.2, draw), wait_seconds(failures, 0.2, 0.0)
    assert longest / 2 <= wait <= longest <= LONGEST_WAIT_SECONDS


def test_the_default_retries_cover_an_outage_of_a_minute() -> None:
    from capture.store.config import StoreConfig

    config = StoreConfig()
    steps = range(1, config.retries + 1)
    shortest = sum(wait_seconds(n, config.first_wait_seconds, 0.5) for n in steps)
    assert shortest > 60


def test_a_store_that_never_answered_gets_three_retries() -> None:
    action, retrier = Flaky(99, answered=False), make_retrier(10)
    with pytest.raises(TransientError):
        retrier(action)
    assert action.calls == 4
    assert retrier(Flaky(0)) == "answer"
    action = Flaky(99, answered=False)
    with pytest.raises(TransientError):
        retrier(action)
    assert action.calls == 11


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ValueError("x")])
def test_other_errors_are_raised_at_once(error: Exception) -> None:
    calls = []

    def action() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        make_retrier(5)(action)
    assert len(calls) == 1
