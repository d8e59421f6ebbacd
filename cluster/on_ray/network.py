"""Check that all nodes of a cluster can reach a run: each reads a file that the driver wrote."""

import os
import uuid

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from capture.errors import CaptureError, StoreError
from capture.store import Store
from cluster.on_ray.job import working_folder
from cluster.on_ray.results import result_of

REMEDY = "Put the run on s3://, or in a folder that all nodes share"
LOST = "was lost while it looked for the run"


def require_reachable(store: Store, nodes: dict[str, str]) -> None:
    """Raises ``StoreError`` if not all nodes (id → name) can reach the run."""
    if store.uri.startswith("memory:"):
        raise StoreError(store.uri, "lies in the memory of one process", REMEDY)
    key, mark = f"segments/.reach-{uuid.uuid4().hex}", uuid.uuid4().hex
    store.put(key, mark.encode())
    try:
        reads = [
            read_mark.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(store, key, working_folder())
            for node in nodes
        ]
        found = [
            (name, result_of(read, "a node", LOST, "Check that all nodes are alive; try again"))
            for name, read in zip(nodes.values(), reads, strict=True)
        ]
    finally:
        store.delete(key)
    require_mark(store.uri, mark, found)


def require_mark(uri: str, mark: str, found: list[tuple[str, str]]) -> None:
    """Raises ``StoreError`` if a node (name, what it read) did not read the mark."""
    unreachable = [f"{name} ({what})" for name, what in found if what != mark]
    if unreachable:
        raise StoreError(uri, f"cannot be reached from node {', '.join(unreachable)}", REMEDY)


@ray.remote(num_cpus=0)
def read_mark(store: Store, key: str, folder: str) -> str:
    """Read a key on this node; returns its text, or why it cannot be read."""
    if os.path.isdir(folder):
        os.chdir(folder)
    try:
        return Store(store.uri, store.config).get(key).decode()
    except FileNotFoundError:
        return "it is not there"
    except CaptureError as error:
        return error.problem
