"""The write queue keeps order and memory bound, and retries while the store is away."""

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


def make_queue(
    report: Callable[[WriteDelay], None] = lambda event: None, **settings: Any
) -> WriteQueue:
    return WriteQueue(StoreConfig(**settings), report)


def away() -> StoreAwayError:
    return StoreAwayError("s3://b/r/x", "cannot be reached (tried 3 times)", "Try again later")


def test_segments_are_written_in_order() -> None:
    queue, written = make_queue(), []
    for number in range(20):
        queue.add(1, lambda number=number: written.append(number) or 5)
    queue.flush()
    queue.close()
    assert written == list(range(20))
    assert (queue.stored_bytes, queue.pending_bytes) == (100, 0)


def test_training_waits_at_the_memory_bound_and_reports_it() -> None:
    delays: list[WriteDelay] = []
    gate = threading.Event()

    def report(event: WriteDelay) -> None:
        delays.append(event)
        gate.set()

    queue = make_queue(report, max_pending_bytes=100)
    for _ in range(2):
        queue.wait_for_room(50)
        queue.add(50, lambda: int(gate.wait(60)))
    assert queue.pending_bytes == 100
    assert queue.take_waited_seconds() < 0.01
    queue.wait_for_room(50)
    assert queue.pending_bytes <= 50
    assert delays[0].patience_seconds is None
    assert "MB wait to be written" in delays[0].problem
    assert queue.take_waited_seconds() > 0
    assert queue.take_waited_seconds() == 0
    queue.close()


def test_a_write_larger_than_the_bound_is_written_alone() -> None:
    queue = make_queue(max_pending_bytes=10)
    for _ in range(3):
        queue.wait_for_room(1000)
        assert queue.pending_bytes == 0
        queue.add(1000, lambda: 1)
    queue.close()
    assert queue.stored_bytes == 3


def test_the_queue_waits_for_a_store_that_comes_back() -> None:
    delays: list[WriteDelay] = []
    back = threading.Event()

    def report(event: WriteDelay) -> None:
        delays.append(event)
        back.set()

    queue = make_queue(report, patience_seconds=60)

    def write() -> int:
        if not back.is_set():
            raise away()
        return 7

    queue.add(1, write)
    queue.flush()
    queue.close()
    assert queue.stored_bytes == 7
    assert delays[0].problem == "s3://b/r/x: cannot be reached (tried 3 times)"
    assert delays[0].patience_seconds == 60


def test_a_store_that_stays_away_stops_the_queue() -> None:
    queue, written = make_queue(patience_seconds=0.01), []

    def write() -> int:
        raise away()

    queue.add(1, write)
    queue.add(1, lambda: written.append(1) or 1)
    with pytest.raises(StoreAwayError) as raised:
        queue.flush()
    text = str(raised.value)
    assert text.startswith("s3://b/r/x: cannot be reached (tried 3 times); waited 0 s (store.pat")
    assert text.endswith(
        "Wait until the store is back, then go on with --resume; what was committed is safe."
    )
    queue.close()
    assert written == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stops_the_queue_at_once(number: int) -> None:
    queue, written = make_queue(patience_seconds=1000), []

    def write() -> int:
        written.append(1)
        raise StoreError("run/x", "cannot be written: full") from OSError(number, "full")

    queue.add(1, write)
    with pytest.raises(StoreError, match=r"written: full\. Make room, then go on with --resume;"):
        queue.flush()
    with pytest.raises(StoreError):
        queue.check()
    queue.close()
    assert written == [1]


def test_other_errors_are_raised_unchanged() -> None:
    error = AuditError("step 3", "went wrong")
    queue = make_queue()

    def write() -> int:
        raise error

    queue.add(1, write)
    with pytest.raises(AuditError) as raised:
        queue.flush()
    assert raised.value is error
    queue.close()


def test_close_with_a_deadline_does_not_wait_for_a_store_that_is_away() -> None:
    queue = make_queue(patience_seconds=1000)

    def write() -> int:
        raise away()

    queue.add(1, write)
    queue.close(0.01)
    queue.thread.join(60)
    assert isinstance(queue.failure, StoreAwayError)
