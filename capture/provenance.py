"""``run.yaml``: the resolved configuration of a run and what it was made with."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from capture.config import Config, make_config, to_values
from capture.errors import RunError, ShardError
from capture.schema import SCHEMA_VERSION
from capture.store import Store

KEY = "run.yaml"
PACKAGES = ("ontogeny", "torch", "numpy", "pyarrow", "safetensors", "omegaconf")


def describe_run(config: Config, device: torch.device) -> bytes:
    """The text of ``run.yaml`` for a run that starts now on this device."""
    values = {
        "schema_version": SCHEMA_VERSION,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version()} | dict(map(version_of, PACKAGES)),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "config": to_values(config),
    }
    return yaml.safe_dump(values, sort_keys=False).encode()


def read_run(store: Store) -> dict[str, Any]:
    """The values of ``run.yaml``; raises ``ShardError`` if unreadable, ``RunError`` if newer."""
    where = f"{store.uri}/{KEY}"
    try:
        values = yaml.safe_load(store.get(KEY))
        version = int(values["schema_version"])
    except FileNotFoundError as error:
        raise ShardError(where, "is missing", "Run: ontogeny verify") from error
    except (yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise ShardError(where, "is not readable", "Run: ontogeny verify") from error
    if version > SCHEMA_VERSION:
        problem = f"has schema version {version}, this version of ontogeny reads {SCHEMA_VERSION}"
        raise RunError(where, problem, "Use a newer version of ontogeny")
    return values


def read_run_config(store: Store) -> Config:
    """The configuration that a run was made with."""
    return make_config(read_run(store).get("config"), where=f"{store.uri}/{KEY}")


def version_of(package: str) -> tuple[str, str]:
    try:
        return package, metadata.version(package)
    except metadata.PackageNotFoundError:
        return package, "unknown"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({platform.processor() or platform.machine()})"


def git_commit() -> str:
    """The commit of the code that runs, with "+changes" if files differ from it; else "unknown"."""
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
