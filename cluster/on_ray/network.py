"""Whether all nodes of a cluster can reach a run: each is asked what it finds in a new file."""

import os
import uuid

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from capture.errors import CaptureError, ClusterError, StoreError
from capture.store.store import Store
from cluster.on_ray.session import first_line

REMEDY = "Put the run on s3://, or in a folder that all nodes share"


def require_reach(store: Store, nodes: dict[str, str]) -> None:
    """Raises ``StoreError`` for a run that lies where not all nodes (id → name) can reach it."""
    if store.uri.startswith("memory:"):
        raise StoreError(store.uri, "lies in the memory of one process", REMEDY)
    key, mark = f"segments/.reach-{uuid.uuid4().hex}", uuid.uuid4().hex
    store.put(key, mark.encode())
    try:
        looks = [
            read_mark.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(store, key, os.getcwd())
            for node in nodes
        ]
        found = list(zip(nodes.values(), map(answer, looks), strict=True))
    finally:
        store.delete(key)
    require_mark(store.uri, mark, found)


def require_mark(uri: str, mark: str, found: list[tuple[str, str]]) -> None:
    """``found``: by name, what each node found in the place of the mark."""
    blind = [f"{name} ({what})" for name, what in found if what != mark]
    if blind:
        raise StoreError(uri, f"cannot be reached from node {', '.join(blind)}", REMEDY)


@ray.remote(num_cpus=0)
def read_mark(store: Store, key: str, folder: str) -> str:
    """What this node finds at a key, or why it finds nothing."""
    if os.path.isdir(folder):
        os.chdir(folder)
    try:
        return Store(store.uri, store.config).get(key).decode()
    except FileNotFoundError:
        return "it is not there"
    except CaptureError as error:
        return error.problem


def answer(look: ray.ObjectRef) -> str:
    try:
        return ray.get(look)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        problem = f"was lost while it looked for the run: {first_line(error)}"
        raise ClusterError(
            "a node", problem, "See whether all nodes are well; try again"
        ) from error
