"""A rank whose loop has ended says that it waits for the others, which may wait for it."""

import logging
import threading

import pytest

from capture.custom_loop.ranks import agreement
from capture.custom_loop.ranks.agreement import Ranks
from capture.process_group import SingleProcess

WAITS = "rank 1 has ended its loop, and waits for other ranks, which are still training. All ranks"


class Second(SingleProcess):
    """The second of two ranks."""

    rank, size = 1, 2


class Said(logging.Handler):
    """Keeps what is logged, and sets an event then."""

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage()
        self.event.set()


def test_a_rank_that_waits_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "WAITING_SECONDS", 0.0)
    said = Said()
    agreement.LOG.addHandler(said)
    try:
        with Ranks(Second()).waiting_at_end():
            assert said.event.wait(60)
    finally:
        agreement.LOG.removeHandler(said)
    assert WAITS in said.text


def test_a_single_process_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Timer] = []
    monkeypatch.setattr(threading.Timer, "start", lambda timer: started.append(timer))
    with Ranks().waiting_at_end():
        pass
    assert not started
    with Ranks(Second()).waiting_at_end():
        assert len(started) == 1
    assert started[0].finished.is_set()  # cancelled
