"""Ray clusters for tests: several one-core nodes on this machine, with few processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import ray
from ray.cluster_utils import Cluster
from ray_jobs import ENVIRONMENT

from cluster.on_ray.session import connect

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}


@contextmanager
def ray_cluster(num_nodes: int, *, head_cpus: int = 1) -> Iterator[Cluster]:
    """Start a cluster and join it with this process as the driver, on the head (the first node)."""
    with mock.patch.dict(os.environ, ENVIRONMENT):
        nodes = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": head_cpus})
        try:
            for _ in range(num_nodes - 1):
                nodes.add_node(**NODE)
            with connect(str(nodes.address)):
                yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()
