"""A connection to Ray: to a running cluster, or to one that this process starts and ends.

Workers run the driver's code: the packages are uploaded, unless a job brought a working directory
(``ray job submit --working-dir .``). Credentials are not sent. Workers take theirs from their own
environment, which a cluster started here inherits from this process.

A cluster started here has no dashboard. Ray's token protects its other ports; they listen on all
addresses.
"""

import io
import logging
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from capture.errors import ClusterError
from cluster.on_ray.job import runtime_environment, working_folder

PACKAGES = ("ontogeny", "capture", "analysis", "cluster", "configs")
"""Folders that workers need to run our code."""
OLDEST = (2, 60)
"""The oldest version of Ray that has all that we use, as in pyproject.toml."""
INSTALL = "Run: pip install 'ontogeny[ray]'"
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
    printed = io.BytesIO()
    try:
        with keep_sigterm_handler(), kept_stderr(printed):
            ray.init(
                address or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=package_environment(),
            )
    except Exception as error:  # Ray raises plain ``Exception``, too, when a node starts slowly
        said = printed.getvalue().decode(errors="replace")
        raise joining_error(address or "Ray", error, said) from error
    with suppress(OSError):
        os.write(2, printed.getvalue())
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
    """Import and return Ray; raises ``ClusterError`` if it is not installed or too old."""
    try:
        import ray
    except ImportError as error:
        raise ClusterError("Ray", "is not installed", INSTALL) from error
    require_version(ray.__version__)
    return ray


def require_version(version: str) -> None:
    """Raises ``ClusterError`` for a Ray whose Train library lacks what we use."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < OLDEST:
        problem = f"is version {version}, needs {OLDEST[0]}.{OLDEST[1]} or newer"
        raise ClusterError("Ray", problem, INSTALL)


@contextmanager
def kept_stderr(kept: io.BytesIO) -> Iterator[None]:
    """Keep what is written to file number 2 within.

    Ray's core prints the reason of a failure there, line by line, and raises an error without it.
    """
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            kept.write(file.read())


def joining_error(address: str, error: Exception, printed: str) -> ClusterError:
    """The error for the user that explains why a cluster was not joined, on one line.

    ``printed`` is what Ray wrote to standard error.
    """
    if not working_folder():
        problem = "cannot be joined: the working directory of this process was deleted"
        remedy = (
            "Start the command elsewhere; give each node on one machine a --temp-dir of its own"
        )
        return ClusterError(address, problem, remedy)
    about = f"{type(error).__name__} {error} {printed}".lower()
    refused = any(word in about for word in ("authenti", "token"))
    remedy = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or ~/.ray/auth_token) to the cluster's"
    problem = f"cannot be joined: {first_line(error)}"
    return ClusterError(address, problem, f"{remedy} token" if refused else "")


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
