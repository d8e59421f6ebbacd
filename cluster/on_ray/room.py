"""Room for work on a cluster: what its nodes offer, and a bounded wait while nodes may still join.

A cluster that this process joined may grow: machines of an autoscaler take minutes to start, and
the head accepts jobs before its workers have joined. A cluster that this process started has what
it has.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray._private import worker
from ray.autoscaler.sdk import request_resources

from capture.config.settings import Config
from capture.errors import CaptureError, ClusterError, ConfigError
from cluster.on_ray.policy import JoiningNodes
from cluster.terminal.progress import NodeWait, Report

Found = TypeVar("Found")
Nodes = list[dict[str, Any]]
LOG = logging.getLogger(__name__)
WAIT_SECONDS = 300.0
"""How long to wait for another node since the last one joined."""
POLL_SECONDS = 1.0
SECONDS_BETWEEN_WARNINGS = 30.0


def nodes_with_cores() -> Nodes:
    """The living nodes that can run work, as ``ray.nodes`` describes them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def wait_for_workers_room(config: Config, report: Report) -> bool:
    """Wait until all workers of a capture fit on the cluster; return whether they use GPUs.

    Raises ``ConfigError`` if they do not fit and no node joins for ``WAIT_SECONDS``.
    """
    wanted = config.workers
    gpu = {"GPU": 1} if config.training.device == "cuda" else {}

    def check(nodes: Nodes) -> bool:
        return require_room(config, [node["Resources"] for node in nodes])

    def say(problem: str, seconds: float) -> None:
        report(NodeWait(problem, seconds, WAIT_SECONDS))

    return wait_until(check, [{"CPU": wanted.cpus} | gpu] * wanted.count, say)


def wait_for_cores() -> None:
    """Wait until the cluster has a core for tasks; logs a warning now and then.

    Raises ``ClusterError`` if no node with cores joins for ``WAIT_SECONDS``.
    """
    last = -SECONDS_BETWEEN_WARNINGS

    def check(nodes: Nodes) -> None:
        if not nodes:
            raise ClusterError("Ray", "no node of the cluster has cores", "Add nodes to it")

    def say(problem: str, seconds: float) -> None:
        nonlocal last
        if seconds - last >= SECONDS_BETWEEN_WARNINGS:
            last = seconds
            LOG.warning("%s: waiting for nodes for up to %.0f s", problem, WAIT_SECONDS)

    wait_until(check, [{"CPU": 1}], say)


def wait_until(
    check: Callable[[Nodes], Found],
    bundles: list[dict[str, int]],
    say: Callable[[str, float], None],
) -> Found:
    """Return what ``check`` returns of the nodes, as soon as it no longer raises.

    While it raises, an autoscaler is asked for ``bundles`` (resources of each piece of work), and
    ``say`` is called with the problem and the seconds waited so far. Raises the check's error at
    once on a cluster that this process started, elsewhere when no node has joined for
    ``WAIT_SECONDS``.
    """
    began = time.monotonic()
    joining = JoiningNodes(WAIT_SECONDS, began)
    asked = False
    try:
        while True:
            nodes, now = nodes_with_cores(), time.monotonic()
            try:
                return check(nodes)
            except CaptureError as error:
                if is_started_here():
                    raise
                if joining.seconds_left(len(nodes), now) <= 0:
                    problem = f"{error.problem}; no node has joined for {WAIT_SECONDS:.0f} s"
                    raise type(error)(error.where, problem, error.remedy) from error
                say(error.problem, now - began)
            if not asked:
                request_resources(bundles=bundles)
                asked = True
            time.sleep(POLL_SECONDS)
    finally:
        if asked:  # the request would hold machines for ever
            request_resources(bundles=[])


def is_started_here() -> bool:
    """Whether this process has started the cluster that it uses."""
    node = worker._global_node
    return node is not None and node.is_head()


def require_room(config: Config, nodes: list[dict[str, float]]) -> bool:
    """Return whether workers use GPUs; raises ``ConfigError`` if not all workers fit on the nodes.

    ``nodes`` are the total resources of each node, in use or not. A worker's cores and its GPU must
    be on one node.
    """
    wanted, device = config.workers, config.training.device
    slots = [int(has.get("CPU", 0)) // wanted.cpus for has in nodes]
    gpus = [int(has.get("GPU", 0)) for has in nodes]
    with_gpu = sum(map(min, slots, gpus))
    cores = sum(int(has.get("CPU", 0)) for has in nodes)
    have = f"the cluster has {cores} cores and {sum(gpus)} GPUs, room for"
    remedy = "Ask for fewer, or add nodes to the cluster"
    if device == "cuda" and with_gpu < wanted.count:
        each = "with a GPU each (training.device = cuda)"
        raise ConfigError("workers.count", f"got {wanted.count} {each}, {have} {with_gpu}", remedy)
    if sum(slots) < wanted.count:
        each = f"with {wanted.cpus} core{'s' if wanted.cpus > 1 else ''} each"
        raise ConfigError(
            "workers.count", f"got {wanted.count} {each}, {have} {sum(slots)}", remedy
        )
    return device != "cpu" and with_gpu >= wanted.count
