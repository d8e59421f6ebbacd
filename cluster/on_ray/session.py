"""A connection to Ray: to a cluster that is there, or to one that this process starts and ends.

What runs on the workers is the driver's own code: the packages are sent along, unless a job brought
a folder of its own (``ray job submit --working-dir .``). Credentials are not sent: workers take
theirs from their own environment, which a cluster started here inherits from this process.

A cluster started here has no dashboard. Ray's own ports are guarded by its token, not by the
address that they listen on.
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

OURS = ("capture", "analysis", "cluster", "configs")
PATIENCE_SECONDS = 5.0
"""For a cluster's head to answer at all; Ray itself takes two minutes to say that none does."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """What the cluster had when it was joined."""

    nodes: int
    cpus: int
    gpus: int


@contextmanager
def connect(address: str = "") -> Iterator[Session]:
    """Join the cluster at host:port, or (``local``) one that lives as long as this; "" finds one.

    It looks at RAY_ADDRESS, then for a cluster started on this machine, and starts one if there is
    none. Where this process is connected already, that connection is used, and stays. Raises
    ``ClusterError`` where Ray is not installed or no cluster answers.
    """
    ray = require_ray()
    if ray.is_initialized():
        yield standing()
        return
    require_answer(address or os.environ.get("RAY_ADDRESS", ""))
    try:
        with own_sigterm():
            ray.init(
                address or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=code(),
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(address or "Ray", f"cannot be joined: {first_line(error)}") from error
    try:
        yield standing()
    finally:
        ray.shutdown()


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Within, Ray puts a handler of its own in the place of ours; afterwards ours is back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def require_ray():
    """The library; raises ``ClusterError`` where it is not installed."""
    try:
        import ray
    except ImportError as error:
        remedy = "Run: pip install 'ontogeny[cluster]'"
        raise ClusterError("Ray", "is not installed", remedy) from error
    return ray


def require_answer(address: str) -> None:
    """Raises ``ClusterError`` if an address is given that is none, or where nothing listens."""
    if "://" in address:
        remedy = (
            "Set RAY_ADDRESS to the head's, as in head:6379; "
            "where jobs are submitted to stands in RAY_API_SERVER_ADDRESS"
        )
        raise ClusterError(address, "is not a cluster's own address, host:port", remedy)
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE_SECONDS).close()
    except OSError as error:
        remedy = "Start one with ray start --head, or give --ray local for one of its own"
        raise ClusterError(address, f"has no Ray cluster: {error}", remedy) from error


def code() -> dict[str, object]:
    """The runtime environment that brings our packages; none if the job brought a folder."""
    job = runtime_environment()
    if "working_dir" in job or "py_modules" in job:
        return {}
    root = Path(__file__).resolve().parents[2]
    return {"py_modules": [str(root / name) for name in OURS], "excludes": ["__pycache__"]}


def standing() -> Session:
    """What the cluster has now."""
    ray = require_ray()
    has = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    return Session(nodes=nodes, cpus=int(has.get("CPU", 0)), gpus=int(has.get("GPU", 0)))


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
