"""Settings of the Ray job that this process is, if it was submitted (``ray job submit``).

A job with a working directory runs in a copy of that folder, which Ray unpacks on one node and may
delete at any time. Files written to a relative path are lost with it.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from capture.errors import ConfigError

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray describes a submitted job to its driver in this environment variable, as JSON."""


def runtime_environment() -> dict[str, Any]:
    """The job's runtime environment; empty if this process is not a submitted job."""
    return json.loads(os.environ.get(JOB_CONFIG_VARIABLE) or "{}").get("runtime_env") or {}


def working_folder() -> str:
    """This process's working directory, to which relative paths refer; empty if it was deleted.

    Nodes that share a ``--temp-dir`` delete the working directories of each other's jobs.
    """
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def require_persistent(where: str, uri: str) -> None:
    """Raises ``ConfigError`` for an output path inside the job's temporary working directory."""
    path = re.sub("^(file|local)://", "", uri)
    if "://" in path or Path(path).is_absolute():
        return
    if runtime_environment().get("working_dir"):
        problem = f"{uri!r} is relative to the job's working directory, a copy that Ray deletes"
        raise ConfigError(where, problem, "Give s3://bucket/prefix or an absolute path")
