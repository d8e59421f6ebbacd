"""``run.yaml``: the resolved configuration of a run, and the versions and device that made it."""

import functools
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from capture import __version__
from capture.config.reading import make_config
from capture.config.safe_yaml import read_yaml
from capture.config.settings import Config, to_values
from capture.errors import RunError, ShardError
from capture.format.chain import require_start
from capture.format.markers import START, File, Marker, read_small
from capture.shards.schema import SCHEMA_VERSION
from capture.store import Store

KEY = "run.yaml"
MAX_BYTES = 2**17
REMEDY = "Run: ontogeny verify"
FIELDS = {"started_at": str, "git_commit": str, "versions": dict, "device": str, "config": dict}
"""Fields that ``run.yaml`` must have beside ``schema_version``, with their types."""
PACKAGES = ("torch", "numpy", "pyarrow", "safetensors", "omegaconf", "transformers")


def describe_run(
    config: Config,
    device: torch.device,
    *,
    transposed: Iterable[str] = (),
    groups: Sequence[Mapping[str, Any]] = (),
) -> bytes:
    """Return the text of ``run.yaml`` for a run that starts now on this device.

    ``transposed``: names of the weights that are stored [I, O], for a model that readers cannot
    build from the configuration. ``groups``: parameter groups whose settings differ from those in
    the configuration, each with ``units``, ``rate`` and ``optimizer``.
    """
    values = {
        "schema_version": SCHEMA_VERSION,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "versions": versions(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "config": to_values(config),
    }
    if found := sorted(transposed):
        values["transposed"] = found
    if groups:
        values["parameter_groups"] = list(groups)
    return yaml.safe_dump(values, sort_keys=False).encode()


def read_run(store: Store, start: Marker) -> dict[str, Any]:
    """Read ``run.yaml``, which must be the file that the start marker lists.

    Raises ``ShardError`` if it is another file or unreadable, ``RunError`` if its schema is newer.
    """
    where = f"{store.uri}/{KEY}"
    data = read_small(store, KEY, MAX_BYTES)
    for file in start.files_of("config"):
        if File.of(KEY, "config", data) != file:
            raise ShardError(where, "is not the file that its marker names", REMEDY)
        return parse_run_yaml(data, where)
    raise ShardError(f"{store.uri}/{START}", f"does not name {KEY}", REMEDY)


def parse_run_yaml(data: bytes, where: str) -> dict[str, Any]:
    """Parse the text of ``run.yaml`` and check its fields; raises as ``read_run`` does."""
    try:
        values = read_yaml(data.decode())
        version = int(values["schema_version"])
        wrong = [name for name, kind in FIELDS.items() if not isinstance(values[name], kind)]
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else f"it {error}"
        raise ShardError(where, f"is not readable: {reason}", REMEDY) from error
    if version > SCHEMA_VERSION:
        problem = f"has schema version {version}, this version of ontogeny reads {SCHEMA_VERSION}"
        raise RunError(where, problem, "Use a newer version of ontogeny")
    if wrong:
        raise ShardError(where, f"is not readable: its {wrong[0]} has the wrong type", REMEDY)
    return values


def read_run_config(store: Store) -> Config:
    """Read the configuration of a run."""
    values = read_run(store, require_start(store))
    return make_config(values["config"], where=f"{store.uri}/{KEY}")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this code and of the packages that it needs.

    That of this code is its own: an installed package may be older than the code that runs.
    """
    own = {"python": platform.python_version(), "ontogeny": __version__}
    return own | dict(map(version_of, PACKAGES))


@functools.cache
def version_of(package: str) -> tuple[str, str]:
    try:
        return package, metadata.version(package)
    except metadata.PackageNotFoundError:
        return package, "unknown"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({platform.processor() or platform.machine()})"


@functools.cache
def git_commit() -> str:
    """Return the git commit of this code, with "+changes" for local changes; else "unknown".

    Git is asked once per process, because later changes are not of the code that was loaded.
    """
    folder = Path(__file__).parent
    try:
        commit = git("rev-parse", "HEAD", folder=folder)
        return f"{commit}+changes" if git("status", "--porcelain", folder=folder) else commit
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def git(*arguments: str, folder: Path) -> str:
    command = ["git", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
