"""Closed segments reach the store in order, within a bound of memory, and with patience."""

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest

from capture.errors import AuditError, StoreAwayError, StoreError
from capture.store.config import StoreConfig
from capture.training import write_queue
from capture.training.write_queue import WriteDelay, WriteQueue


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_queue, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(write_queue, "REPORT_SECONDS", 0.01)


def made(report: Callable[[WriteDelay], None] = lambda event: None, **settings: Any) -> WriteQueue:
    return WriteQueue(StoreConfig(**settings), report)


def away() -> StoreAwayError:
    return StoreAwayError("s3://b/r/x", "cannot be reached (tried 3 times)", "Try again later")


def test_segments_are_written_in_the_order_of_their_closing() -> None:
    line, written = made(), []
    for number in range(20):
        line.add(1, lambda number=number: written.append(number) or 5)
    line.flush()
    line.close()
    assert written == list(range(20))
    assert (line.stored_bytes, line.pending_bytes) == (100, 0)


def test_training_waits_when_the_bound_is_reached_and_says_so() -> None:
    told: list[WriteDelay] = []
    gate = threading.Event()

    def report(event: WriteDelay) -> None:
        told.append(event)
        gate.set()

    line = made(report, max_pending_bytes=100)
    for _ in range(2):
        line.wait_for_room(50)
        line.add(50, lambda: int(gate.wait(60)))
    assert line.pending_bytes == 100
    assert line.take_waited_seconds() < 0.01
    line.wait_for_room(50)
    assert line.pending_bytes <= 50
    assert told[0].patience_seconds is None
    assert "MB wait to be written" in told[0].problem
    assert line.take_waited_seconds() > 0
    assert line.take_waited_seconds() == 0
    line.close()


def test_what_is_larger_than_the_bound_goes_alone() -> None:
    line = made(max_pending_bytes=10)
    for _ in range(3):
        line.wait_for_room(1000)
        assert line.pending_bytes == 0
        line.add(1000, lambda: 1)
    line.close()
    assert line.stored_bytes == 3


def test_a_store_that_comes_back_is_waited_for() -> None:
    told: list[WriteDelay] = []
    back = threading.Event()

    def report(event: WriteDelay) -> None:
        told.append(event)
        back.set()

    line = made(report, patience_seconds=60)

    def write() -> int:
        if not back.is_set():
            raise away()
        return 7

    line.add(1, write)
    line.flush()
    line.close()
    assert line.stored_bytes == 7
    assert told[0].problem == "s3://b/r/x: cannot be reached (tried 3 times)"
    assert told[0].patience_seconds == 60


def test_a_store_that_stays_away_ends_it_with_one_message() -> None:
    line, written = made(patience_seconds=0.01), []

    def write() -> int:
        raise away()

    line.add(1, write)
    line.add(1, lambda: written.append(1) or 1)
    with pytest.raises(StoreAwayError) as raised:
        line.flush()
    text = str(raised.value)
    assert text.startswith("s3://b/r/x: cannot be reached (tried 3 times); waited 0 s (store.pat")
    assert text.endswith(
        "Wait until the store is back, then go on with --resume; what was committed is safe."
    )
    line.close()
    assert written == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_it_at_once(number: int) -> None:
    line, written = made(patience_seconds=1000), []

    def write() -> int:
        written.append(1)
        raise StoreError("run/x", "cannot be written: full") from OSError(number, "full")

    line.add(1, write)
    with pytest.raises(StoreError, match=r"written: full\. Make room, then go on with --resume;"):
        line.flush()
    with pytest.raises(StoreError):
        line.check()
    line.close()
    assert written == [1]


def test_other_errors_pass_as_they_are() -> None:
    error = AuditError("step 3", "went wrong")
    line = made()

    def write() -> int:
        raise error

    line.add(1, write)
    with pytest.raises(AuditError) as raised:
        line.flush()
    assert raised.value is error
    line.close()


def test_who_is_in_a_hurry_does_not_wait_for_a_store_that_is_away() -> None:
    line = made(patience_seconds=1000)

    def write() -> int:
        raise away()

    line.add(1, write)
    line.close(0.01)
    line.thread.join(60)
    assert isinstance(line.failure, StoreAwayError)
