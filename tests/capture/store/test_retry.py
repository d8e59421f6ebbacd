"""Retries: bounded, with waits that grow, counted, and only for what may pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.store.retry import LONGEST_WAIT_SECONDS, Retrier, TransientError, wait_seconds


def retrier(retries: int, waits: list[float] | None = None) -> Retrier:
    sleep = (lambda seconds: None) if waits is None else waits.append
    return Retrier(retries, first_wait_seconds=0.2, sleep=sleep, draw=lambda: 0.0)


class Flaky:
    """Fails a number of times, then answers."""

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
def test_it_asks_once_more_than_it_may_retry_and_counts(failures: int, retries: int) -> None:
    ask, again = Flaky(failures), retrier(retries)
    if failures <= retries:
        assert again(ask) == "answer"
    else:
        with pytest.raises(TransientError, match=f"failure {retries + 1}"):
            again(ask)
    assert ask.calls == min(failures, retries) + 1
    assert again.num_retries == ask.calls - 1


def test_waits_double_up_to_a_bound() -> None:
    waits: list[float] = []
    retrier(9, waits)(Flaky(9))
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0, 20.0]


@given(failures=st.integers(1, 2000), draw=st.floats(0, 1, exclude_max=True))
def test_a_wait_is_shortened_by_at_most_a_half_and_never_too_long(failures, draw) -> None:
    wait, longest = wait_seconds(failures, 0.2, draw), wait_seconds(failures, 0.2, 0.0)
    assert longest / 2 <= wait <= longest <= LONGEST_WAIT_SECONDS


def test_the_default_settings_outlast_a_minute_without_the_store() -> None:
    from capture.store.config import StoreConfig

    config = StoreConfig()
    steps = range(1, config.retries + 1)
    shortest = sum(wait_seconds(n, config.first_wait_seconds, 0.5) for n in steps)
    assert shortest > 60


def test_a_store_that_never_answered_is_given_up_soon() -> None:
    ask, again = Flaky(99, answered=False), retrier(10)
    with pytest.raises(TransientError):
        again(ask)
    assert ask.calls == 4
    assert again(Flaky(0)) == "answer"
    ask = Flaky(99, answered=False)
    with pytest.raises(TransientError):
        again(ask)
    assert ask.calls == 11


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ValueError("x")])
def test_what_will_not_pass_is_raised_at_once(error: Exception) -> None:
    calls = []

    def ask() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        retrier(5)(ask)
    assert len(calls) == 1
