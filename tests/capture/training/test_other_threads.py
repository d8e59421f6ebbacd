"""A resumed capture says if it uses another number of threads than the run was started with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import make_run, tiny_config

from capture.training.loop import OtherThreads
from cluster.terminal.progress import EventLines


@pytest.fixture
def threads() -> Iterator[int]:
    """Yield the number of threads, which is restored."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_another_number_of_threads_is_told_on_resume(tmp_path: Path, threads: int) -> None:
    config = tiny_config(tmp_path)
    events = make_run(config) + make_run(config, resume=True)
    assert not any(isinstance(event, OtherThreads) for event in events)
    torch.set_num_threads(threads + 1)
    told = [event for event in make_run(config, resume=True) if isinstance(event, OtherThreads)]
    assert told == [OtherThreads(threads, threads + 1)]
    line = EventLines().line(told[0])
    assert line is not None
    assert f"{threads + 1} threads" in line
    assert f"started with {threads}" in line
