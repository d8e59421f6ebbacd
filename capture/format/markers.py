"""Markers: the small JSON files that make the parts of a run exist.

A part (the start of a run, or one segment of it) is there exactly when its marker is. The marker is
written last and lists every file of the part with its rows, bytes and checksum; readers ask for
markers and nothing else.

A marker carries a checksum of itself and that of the marker before it, back to the run's start,
which tells the moment at which the run began: a marker of another run, or of another time, does not
fit into the chain. Markers are data of unknown origin to whoever reads them, so no more than
``MAX_BYTES`` of each are read and every field is checked.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from capture.errors import RunError, ShardError, StoreError
from capture.shards.column_chunks import footer_sha256
from capture.shards.schema import SCHEMA_VERSION
from capture.store.store import Store, checked

FOLDER = "segments"
START = f"{FOLDER}/start.json"
MAX_BYTES = 4 * 2**20
"""A marker has some hundred bytes a file; one of this size would list some 10,000 files."""
MAX_COUNT = 2**53
"""Rows, bytes and steps are below this."""
CHECKSUM = re.compile("[0-9a-f]{64}")


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
    footer_sha256: str = ""
    """Of a table's footer, which vouches for its column chunks; empty for other files."""

    @classmethod
    def of(cls, key: str, kind: str, data: bytes | memoryview, rows: int | None = None) -> "File":
        footer = footer_sha256(data) if rows is not None else ""
        return cls(key, kind, rows, len(data), hashlib.sha256(data).hexdigest(), footer)


@dataclass(frozen=True)
class Marker:
    """What a part of the run consists of: steps [first_step, end_step) and their files."""

    first_step: int
    end_step: int
    files: tuple[File, ...]
    written_at: str = ""
    schema_version: int = SCHEMA_VERSION
    previous: str = ""
    """Checksum of the marker before this one; empty for a run's start and in earlier versions."""
    retries: int = 0
    """Requests to the store that had to be made again since the marker before this one."""
    waited_seconds: float = 0.0
    """How long training stood still for the store while this segment was under way."""
    pending_bytes: int = 0
    """Held in memory of closed segments, this one included, when it was closed."""
    checksum: str = ""
    """Of all the above; known once it is written."""

    def files_of(self, kind: str) -> list[File]:
        return [file for file in self.files if file.kind == kind]


def segment_key(segment: int) -> str:
    return f"{FOLDER}/segment-{segment:06d}.json"


def segment_of(key: str) -> int | None:
    """Which segment's marker a key is; None for other keys."""
    found = re.fullmatch(FOLDER + r"/segment-(\d{6,9})\.json", key)
    return int(found[1]) if found and segment_key(int(found[1])) == key else None


def write_marker(store: Store, key: str, marker: Marker, *, after: Marker | None = None) -> None:
    """Make a part exist. Everything it lists must have been put before.

    A segment's marker follows that of the segment before it, which is looked up; others follow
    ``after``.
    """
    segment = segment_of(key)
    if segment is not None:
        after = read_marker(store, segment_key(segment - 1) if segment else START)
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    previous = after.checksum if after else ""
    values = asdict(replace(marker, written_at=now, previous=previous))
    del values["checksum"]
    store.put(key, encode(values | {"checksum": checksum(values)}))


def read_marker(store: Store, key: str) -> Marker:
    """Raises ``ShardError`` for a damaged marker, ``RunError`` for one of a newer schema."""
    where = f"{store.uri}/{key}"
    values = read_values(store, key)
    try:
        found = values.pop("checksum")
        version = values["schema_version"]
        intact = found == checksum(values)
    except (KeyError, AttributeError, TypeError) as error:
        raise unreadable(where, "it lacks a checksum or a version") from error
    if not intact:
        raise ShardError(where, "does not match its own checksum", "Restore it from a copy")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        problem = f"has schema version {version}, this version of ontogeny reads {SCHEMA_VERSION}"
        raise RunError(where, problem, "Use a newer version of ontogeny")
    try:
        return marker_of(values | {"checksum": found})
    except (TypeError, KeyError, ValueError, AttributeError, StoreError) as error:
        raise unreadable(where, str(getattr(error, "problem", error))) from error


def read_values(store: Store, key: str) -> dict[str, Any]:
    """What a marker's text says, if it is written exactly as markers are; raises ``ShardError``."""
    where = f"{store.uri}/{key}"
    data = read_small(store, key, MAX_BYTES)
    try:
        values = json.loads(data, parse_constant=refused)
        if encode(values) == data:
            return values
    except (ValueError, TypeError, RecursionError) as error:
        raise unreadable(where, "it is no JSON") from error
    raise unreadable(where, "its text was changed")


def read_small(store: Store, key: str, limit: int) -> bytes:
    """A key's value, of which no more than ``limit`` bytes are ever held; raises ``ShardError``."""
    where = f"{store.uri}/{key}"
    try:
        with store.open(key) as source:
            data = source.read(limit + 1)
    except FileNotFoundError as error:
        raise ShardError(where, "is missing", "Restore it from a copy") from error
    except OSError as error:
        raise StoreError(where, f"cannot be read: {error}") from error
    if len(data) > limit:
        problem = f"is larger than {limit:,} bytes, which none of ours is"
        raise ShardError(where, problem, "Restore it from a copy")
    return data


def unreadable(where: str, reason: str) -> ShardError:
    problem = f"is not a readable marker ({reason[:200]})"
    return ShardError(where, problem, "Restore it from a copy")


def marker_of(values: dict[str, Any]) -> Marker:
    """The marker with these values, each of which is checked; raises ``ValueError`` and the like.

    Fields that a later version has added are passed over.
    """
    files = tuple(file_of(dict(file)) for file in values["files"])
    marker = Marker(**{**known(values, Marker), "files": files})
    first, end = count(marker.first_step), count(marker.end_step)
    count(marker.schema_version)
    count(marker.retries)
    count(marker.pending_bytes)
    if type(marker.waited_seconds) is not float or not 0 <= marker.waited_seconds < MAX_COUNT:
        raise ValueError("its waited_seconds are impossible")
    if first > end or len({file.key for file in files}) != len(files):
        raise ValueError("it names steps backwards or a file twice")
    texts = (marker.written_at, marker.previous, marker.checksum)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("its time and checksums must be text")
    return marker


def file_of(values: dict[str, Any]) -> File:
    file = File(**known(values, File))
    if not isinstance(file.key, str) or not isinstance(file.kind, str):
        raise ValueError("a file's key and kind must be text")
    checked("", file.key).encode()
    count(file.num_bytes)
    if file.rows is not None:
        count(file.rows)
    if not CHECKSUM.fullmatch(file.sha256):
        raise ValueError(f"{file.key} has no checksum")
    if file.footer_sha256 and not CHECKSUM.fullmatch(file.footer_sha256):
        raise ValueError(f"the footer of {file.key} has no checksum")
    return file


def known(values: dict[str, Any], kind: type) -> dict[str, Any]:
    return {f.name: values[f.name] for f in fields(kind) if f.name in values}


def count(number: Any) -> int:
    if type(number) is not int or not 0 <= number < MAX_COUNT:
        raise ValueError("a number of rows, bytes or steps is impossible")
    return number


def refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def encode(values: dict[str, Any]) -> bytes:
    """The only text that a marker of these values may have."""
    return json.dumps(values, indent=1).encode()


def checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_segments(store: Store) -> list[Marker]:
    """Markers of the segments, in order; raises ``ShardError`` where one is missing or stale."""
    found = segments_there(store, store.keys(FOLDER))
    markers: list[Marker] = []
    before = read_marker(store, START) if store.exists(START) else None
    for segment in range(found[-1] + 1 if found else 0):
        key = segment_key(segment)
        if segment not in found and not store.exists(key):
            problem = f"is missing although {segment_key(found[-1])} exists"
            raise ShardError(f"{store.uri}/{key}", problem, "Restore it from a copy")
        marker = read_marker(store, key)
        problem = misfit(before, marker) if before else ""
        if problem:
            raise ShardError(f"{store.uri}/{key}", problem, "Restore it from a copy")
        markers.append(marker)
        before = marker
    return markers


def segments_there(store: Store, keys: Iterable[str]) -> list[int]:
    """Segments whose markers a listing shows, ascending, put right at the end, where it may lag:
    the last one is there, and the one after it is not.
    """
    found = sorted(number for key in keys if (number := segment_of(key)) is not None)
    while found and not store.exists(segment_key(found[-1])):
        found.pop()
    end = found[-1] + 1 if found else 0
    while store.exists(segment_key(end)):
        found.append(end)
        end += 1
    return found


def misfit(before: Marker, after: Marker) -> str:
    """Why a marker is not the one that followed another; empty where it may be."""
    if after.first_step != before.end_step:
        return f"begins at step {after.first_step}, the one before ended at {before.end_step}"
    if after.previous and after.previous != before.checksum:
        return "is of another run or an older state: it does not follow the marker before it"
    return ""


def require_start(store: Store) -> Marker:
    """The marker of the run's start; raises ``RunError`` where no run has begun."""
    if store.exists(START):
        return read_marker(store, START)
    if store.exists(segment_key(0)):
        problem = f"is missing although {segment_key(0)} exists"
        raise ShardError(f"{store.uri}/{START}", problem, "Restore it from a copy")
    raise RunError(store.uri, "holds no run", "Make one with: ontogeny capture CONFIG run.uri=…")


def total_bytes(markers: Iterable[Marker]) -> int:
    return sum(file.num_bytes for marker in markers for file in marker.files)
