"""Settings for all tests; an S3 server and a Ray cluster for those that want one."""

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from s3_server import BUCKET, Server, environment, serving

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

settings.register_profile("ontogeny", deadline=None, derandomize=True)
settings.load_profile("ontogeny")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "data") as server:
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix on the server, which the environment of this test leads to."""
    for name, value in environment(s3_server.endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator["Cluster"]:
    """A cluster of two nodes with a core each, which this process has joined."""
    from ray_cluster import ray_cluster

    with ray_cluster(2) as nodes:
        yield nodes
