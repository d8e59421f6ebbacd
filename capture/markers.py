"""Markers: the small JSON files that make the parts of a run exist.

A part (the start of a run, or one segment of it) is there exactly when its marker is. The marker is
written last and lists every file of the part with its rows, bytes and checksum; readers list
markers and nothing else. A marker carries a checksum of itself.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from capture.errors import RunError, ShardError
from capture.schema import SCHEMA_VERSION
from capture.store import Store

FOLDER = "segments"
START = f"{FOLDER}/start.json"


@dataclass(frozen=True)
class File:
    """One file that a marker vouches for."""

    key: str
    kind: str
    """outliers, tallies, steps, evaluations, checkpoints, corpus or config."""
    rows: int | None
    """Rows of a table, None for other files."""
    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, key: str, kind: str, data: bytes | memoryview, rows: int | None = None) -> "File":
        return cls(key, kind, rows, len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Marker:
    """What a part of the run consists of: steps [first_step, end_step) and their files."""

    first_step: int
    end_step: int
    files: tuple[File, ...]
    written_at: str = ""
    schema_version: int = SCHEMA_VERSION

    def files_of(self, kind: str) -> list[File]:
        return [file for file in self.files if file.kind == kind]


def segment_key(segment: int) -> str:
    return f"{FOLDER}/segment-{segment:06d}.json"


def write_marker(store: Store, key: str, marker: Marker) -> None:
    """Make a part exist. Everything it lists must have been put before."""
    values = asdict(replace(marker, written_at=datetime.now(UTC).isoformat(timespec="seconds")))
    text = json.dumps(values | {"checksum": checksum(values)}, indent=1)
    store.put(key, text.encode())


def read_marker(store: Store, key: str) -> Marker:
    """Raises ``ShardError`` for a damaged marker, ``RunError`` for one of a newer schema."""
    where = f"{store.uri}/{key}"
    try:
        values = json.loads(store.get(key))
        found = values.pop("checksum")
        version = values["schema_version"]
        intact = found == checksum(values)
        marker = Marker(**values | {"files": tuple(File(**file) for file in values["files"])})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ShardError(where, "is not a readable marker", "Restore it from a copy") from error
    if isinstance(version, int) and version > SCHEMA_VERSION:
        problem = f"has schema version {version}, this version of ontogeny reads {SCHEMA_VERSION}"
        raise RunError(where, problem, "Use a newer version of ontogeny")
    if not intact:
        raise ShardError(where, "does not match its own checksum", "Restore it from a copy")
    return marker


def checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_segments(store: Store) -> list[Marker]:
    """Markers of the run's segments, in order; raises ``ShardError`` where one is missing."""
    keys = [key for key in store.keys(FOLDER) if key != START]
    wanted = [segment_key(segment) for segment in range(len(keys))]
    for found, expected in zip(sorted(keys), wanted, strict=True):
        if found != expected:
            problem = f"is missing although {keys[-1]} exists"
            raise ShardError(f"{store.uri}/{expected}", problem, "Restore it from a copy")
    return [read_marker(store, key) for key in wanted]


def require_start(store: Store) -> Marker:
    """The marker of the run's start; raises ``RunError`` where no run has begun."""
    if not store.exists(START):
        raise RunError(
            store.uri, "holds no run", "Make one with: ontogeny capture CONFIG run.uri=…"
        )
    return read_marker(store, START)


def total_bytes(markers: Iterable[Marker]) -> int:
    return sum(file.num_bytes for marker in markers for file in marker.files)
