"""Settings of all tests; fixtures for an S3 server and a Ray cluster on this machine."""

import atexit
import gc
import sys
import uuid
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from s3_server import BUCKET, Server, environment, serving

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

settings.register_profile("ontogeny", deadline=None, derandomize=True)
settings.load_profile("ontogeny")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep Python's garbage collector away from what collection makes: a million objects that stay.

    Looking at them took a third of the time of collection, and half a second now and then after it.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first: most tests, where one with processes counts as ten.

    Side by side, each file is run by one process, and a long file that came last would be waited
    for.
    """
    weight = Counter[Path]()
    for item in items:
        weight[item.path] += 10 if item.keywords.keys() & {"ray", "machines"} else 1
    items.sort(key=lambda item: -weight[item.path])


@pytest.fixture(autouse=True)
def width_of_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print tables as wide as for a pipe: pytest-xdist gives its workers a terminal's width."""
    monkeypatch.delenv("COLUMNS", raising=False)


def state_of_torch() -> tuple[int, int] | None:
    """Return the number of threads and of active function modes; None before torch is loaded."""
    if (torch := sys.modules.get("torch")) is None:
        return None
    return torch.get_num_threads(), torch._C._len_torch_function_stack()


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """Fail a test that leaves a recording active or another number of threads.

    Other threads give other bits, so tests that compare bits would fail later in the process.
    """
    before = state_of_torch()
    yield
    assert before is None or state_of_torch() == before, "threads and active function modes"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server on this machine, for the whole session."""
    with serving(tmp_path_factory.mktemp("s3") / "data") as server:
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty prefix on the server; the test's environment points to this server."""
    for name, value in environment(s3_server.endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator["Cluster"]:
    """A cluster of two one-core nodes, to which this process is connected."""
    from ray_cluster import ray_cluster

    with ray_cluster(2) as nodes:
        yield nodes
