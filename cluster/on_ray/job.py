"""What a process knows of the job that it is, if it was submitted (``ray job submit``).

A job with a working directory runs in a copy of that folder, which Ray has unpacked on one node and
deletes when it likes: what is written to a relative path is lost with it.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from capture.errors import ConfigError

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray tells the driver of a submitted job what it was submitted with."""


def runtime_environment() -> dict[str, Any]:
    """What the job was submitted with; empty where this is none."""
    return json.loads(os.environ.get(JOB) or "{}").get("runtime_env") or {}


def require_lasting(where: str, uri: str) -> None:
    """Raises ``ConfigError`` for a place to write to that would go with the job's own folder."""
    path = re.sub("^(file|local)://", "", uri)
    if "://" in path or Path(path).is_absolute():
        return
    if runtime_environment().get("working_dir"):
        problem = f"{uri!r} is relative to the job's working directory, a copy that Ray deletes"
        raise ConfigError(where, problem, "Give s3://bucket/prefix or an absolute path")
