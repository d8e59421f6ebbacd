"""Ray clusters for tests: nodes of one core each, all on this machine, with few processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import ray
from ray.cluster_utils import Cluster

from cluster.ray_session import connect

ROOT = Path(__file__).parent.parent
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),  # jobs of tests are there
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",  # no token is left behind in this machine's home
    "RAY_DEDUP_LOGS": "0",
}


@contextmanager
def ray_cluster(num_nodes: int) -> Iterator[Cluster]:
    """A cluster that this process has joined; the first node is the head, where the driver is."""
    with mock.patch.dict(os.environ, ENVIRONMENT):
        nodes = Cluster(initialize_head=True, head_node_args=NODE)
        try:
            for _ in range(num_nodes - 1):
                nodes.add_node(**NODE)
            with connect(str(nodes.address)):
                yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()
