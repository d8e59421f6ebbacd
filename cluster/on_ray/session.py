"""A connection to Ray: to a running cluster, or to one that this process starts and ends.

Workers run the driver's code: the packages are uploaded, unless a job brought a working directory
(``ray job submit --working-dir .``). Credentials are not sent. Workers take theirs from their own
environment, which a cluster started here inherits from this process.

A cluster started here has no dashboard. Ray's token protects its other ports; they listen on all
addresses.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from capture.errors import ClusterError
from cluster.on_ray.job import runtime_environment

PACKAGES = ("ontogeny", "capture", "analysis", "cluster", "configs")
"""Folders that workers need to run our code."""
PATIENCE_SECONDS = 5.0
"""Time for a cluster's head to accept a connection; Ray itself would wait two minutes."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Resources of the cluster when it was joined."""

    nodes: int
    cpus: int
    gpus: int


@contextmanager
def connect(address: str = "") -> Iterator[Session]:
    """Join the cluster at ``address`` (host:port); ``local`` starts one that ends with the context.

    "" takes the cluster that RAY_ADDRESS names, else one that runs on this machine, else a new one.
    An existing connection of this process is used and stays open. Raises ``ClusterError`` if Ray is
    not installed or no cluster answers.
    """
    ray = require_ray()
    if ray.is_initialized():
        yield cluster_size()
        return
    require_listening(address or os.environ.get("RAY_ADDRESS", ""))
    try:
        with keep_sigterm_handler():
            ray.init(
                address or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=package_environment(),
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(address or "Ray", f"cannot be joined: {first_line(error)}") from error
    try:
        yield cluster_size()
    finally:
        ray.shutdown()


@contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Restore our SIGTERM handler at the end; ``ray.init`` replaces it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def require_ray():
    """Import and return Ray; raises ``ClusterError`` if it is not installed."""
    try:
        import ray
    except ImportError as error:
        remedy = "Run: pip install 'ontogeny[ray]'"
        raise ClusterError("Ray", "is not installed", remedy) from error
    return ray


def require_listening(address: str) -> None:
    """Raises ``ClusterError`` for an address of another kind, or one where nothing listens."""
    if "://" in address:
        remedy = (
            "Set RAY_ADDRESS to the head's, as in head:6379; "
            "the address for submitting jobs goes into RAY_API_SERVER_ADDRESS"
        )
        raise ClusterError(address, "is not a cluster's own address, host:port", remedy)
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE_SECONDS).close()
    except OSError as error:
        remedy = "Start one with ray start --head, or give --ray local for a temporary one"
        raise ClusterError(address, f"has no Ray cluster: {error}", remedy) from error


def package_environment() -> dict[str, object]:
    """The runtime environment that uploads our packages; empty if the job brought a folder."""
    job = runtime_environment()
    if "working_dir" in job or "py_modules" in job:
        return {}
    root = Path(__file__).resolve().parents[2]
    return {"py_modules": [str(root / name) for name in PACKAGES], "excludes": ["__pycache__"]}


def cluster_size() -> Session:
    """Number of nodes, cores and GPUs that the cluster has now."""
    ray = require_ray()
    has = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    return Session(nodes=nodes, cpus=int(has.get("CPU", 0)), gpus=int(has.get("GPU", 0)))


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
