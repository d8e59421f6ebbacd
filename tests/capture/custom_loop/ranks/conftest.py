"""Fixtures of the tests of ranks."""

from collections.abc import Iterator

import pytest
from torch import distributed


@pytest.fixture
def one_process() -> Iterator[None]:
    """Run the test in a process group of one process."""
    store = distributed.HashStore()  # pyright: ignore
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
