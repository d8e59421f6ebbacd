"""Markers: the small JSON files that make the parts of a run exist.

A part of a run is its start or one of its segments. It exists exactly when its marker exists. The
marker is written last and lists every file of the part with its rows, bytes and checksum. Readers
list markers and nothing else.

A marker contains a checksum of itself and the checksum of the marker before it. This chain goes
back to the start of the run, whose marker contains the time at which it was written. A marker of
another run, or of an older state, therefore does not fit into the chain. A marker may come from an
untrusted source, so at most ``MAX_BYTES`` of it are read and every field is checked.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from capture.errors import RunError, ShardError, StoreError
from capture.shards.column_chunks import footer_sha256
from capture.shards.schema import SCHEMA_VERSION
from capture.store.store import Store, checked_key

FOLDER = "segments"
START = f"{FOLDER}/start.json"
MAX_BYTES = 4 * 2**20
"""A marker takes about 300 bytes per file, so this is enough for more than 10,000 files."""
MAX_COUNT = 2**53
"""Upper limit of numbers of rows, bytes and steps."""
MAX_REASONS, REASON_LENGTH = 16, 300
"""Limits of what a marker says was not checked."""
CHECKSUM = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """One file that a marker lists."""

    key: str
    kind: str
    """outliers, tallies, factors, steps, evaluations, checkpoints, corpus, config or analysis."""
    rows: int | None
    """Number of rows of a table; None for other files."""
    num_bytes: int
    sha256: str
    footer_sha256: str = ""
    """Checksum of a table's Parquet footer, which contains those of the column chunks; empty for
    other files."""

    @classmethod
    def of(cls, key: str, kind: str, data: bytes | memoryview, rows: int | None = None) -> "File":
        """Describe the file with these bytes. ``rows`` marks it as a Parquet table."""
        footer = footer_sha256(data) if rows is not None else ""
        return cls(key, kind, rows, len(data), hashlib.sha256(data).hexdigest(), footer)


@dataclass(frozen=True)
class Marker:
    """A part of a run: the steps [first_step, end_step) and their files."""

    first_step: int
    end_step: int
    files: tuple[File, ...]
    written_at: str = ""
    """Time of writing, ISO 8601 with microseconds, UTC."""
    schema_version: int = SCHEMA_VERSION
    previous: str = ""
    """Checksum of the marker before this one; empty for the start of a run."""
    retries: int = 0
    """Number of repeated requests to the store since the marker before this one."""
    waited_seconds: float = 0.0
    """Seconds that training waited for the store during this segment."""
    pending_bytes: int = 0
    """Bytes of closed segments, including this one, held in memory when this one was closed."""
    unchecked: dict[str, int] = field(default_factory=dict)
    """What could not be checked in a custom loop → in how many steps, or for how many rows; not
    written if empty."""
    checksum: str = ""
    """Checksum of all fields above; set when the marker is written."""

    def files_of(self, kind: str) -> list[File]:
        """Return the files of one kind."""
        return [file for file in self.files if file.kind == kind]


def segment_key(segment: int) -> str:
    """Return the key of a segment's marker."""
    return f"{FOLDER}/segment-{segment:06d}.json"


def segment_of(key: str) -> int | None:
    """Return the number of the segment whose marker this key is; None for other keys."""
    found = re.fullmatch(FOLDER + r"/segment-(\d{6,9})\.json", key)
    return int(found[1]) if found and segment_key(int(found[1])) == key else None


def write_marker(store: Store, key: str, marker: Marker, *, after: Marker | None = None) -> None:
    """Write a marker, which makes its part exist. All files that it lists must already be stored.

    A segment's marker follows the marker of the segment before it, which is read from the store.
    Other markers follow ``after``.
    """
    segment = segment_of(key)
    if segment is not None:
        after = read_marker(store, segment_key(segment - 1) if segment else START)
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    previous = after.checksum if after else ""
    values = asdict(replace(marker, written_at=now, previous=previous))
    del values["checksum"]
    if not marker.unchecked:
        del values["unchecked"]
    data = encode(values | {"checksum": checksum(values)})
    if len(data) > MAX_BYTES:  # readers would refuse it, and the run with it
        problem = f"would list {len(marker.files):,} files, more than fit into {MAX_BYTES:,} bytes"
        raise StoreError(f"{store.uri}/{key}", problem, "Nothing of the part was committed")
    store.put(key, data)


def max_files() -> int:
    """Return how many files a segment's marker can list in any case."""
    entry = File("factors/" + "x" * 50, "factors", 10**4, 10**8, "0" * 64, "0" * 64)
    return MAX_BYTES // len(encode({"files": [asdict(entry)]}))


def read_marker(store: Store, key: str) -> Marker:
    """Read a marker; raises ``ShardError`` for a damaged one, ``RunError`` for a newer schema."""
    where = f"{store.uri}/{key}"
    values = read_values(store, key)
    try:
        found = values.pop("checksum")
        version = values["schema_version"]
        intact = found == checksum(values)
    except (KeyError, AttributeError, TypeError) as error:
        raise unreadable_marker(where, "it lacks a checksum or a version") from error
    if not intact:
        raise ShardError(where, "does not match its own checksum", "Restore it from a copy")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        problem = f"has schema version {version}, this version of ontogeny reads {SCHEMA_VERSION}"
        raise RunError(where, problem, "Use a newer version of ontogeny")
    try:
        return marker_of(values | {"checksum": found})
    except (TypeError, KeyError, ValueError, AttributeError, StoreError) as error:
        raise unreadable_marker(where, str(getattr(error, "problem", error))) from error


def read_values(store: Store, key: str) -> dict[str, Any]:
    """Read a marker's JSON. Raises ``ShardError`` unless the text is exactly what ``encode``
    writes."""
    where = f"{store.uri}/{key}"
    data = read_small(store, key, MAX_BYTES)
    try:
        values = json.loads(data, parse_constant=refuse_constant)
        if encode(values) == data:
            return values
    except (ValueError, TypeError, RecursionError) as error:
        raise unreadable_marker(where, "it is not JSON") from error
    raise unreadable_marker(where, "its text was changed")


def read_small(store: Store, key: str, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes. Raises ``ShardError`` if it is larger or missing."""
    where = f"{store.uri}/{key}"
    try:
        with store.open(key) as source:
            data = source.read(limit + 1)
    except FileNotFoundError as error:
        raise ShardError(where, "is missing", "Restore it from a copy") from error
    except OSError as error:
        raise StoreError(where, f"cannot be read: {error}") from error
    if len(data) > limit:
        problem = f"is larger than {limit:,} bytes, the limit for this file"
        raise ShardError(where, problem, "Restore it from a copy")
    return data


def unreadable_marker(where: str, reason: str) -> ShardError:
    problem = f"is not a readable marker ({reason[:200]})"
    return ShardError(where, problem, "Restore it from a copy")


def marker_of(values: dict[str, Any]) -> Marker:
    """Build a marker from JSON values and check every field.

    Raises ``ValueError``, ``TypeError``, ``KeyError``, ``AttributeError`` or ``StoreError`` for
    wrong values. Ignores fields that a later version has added.
    """
    files = tuple(file_of(dict(file)) for file in values["files"])
    marker = Marker(**{**known_fields(values, Marker), "files": files})
    first, end = require_count(marker.first_step), require_count(marker.end_step)
    require_count(marker.schema_version)
    require_count(marker.retries)
    require_count(marker.pending_bytes)
    if type(marker.waited_seconds) is not float or not 0 <= marker.waited_seconds < MAX_COUNT:
        raise ValueError("its waited_seconds is not a possible time")
    if first > end or len({file.key for file in files}) != len(files):
        raise ValueError("its steps run backwards, or it lists a file twice")
    texts = (marker.written_at, marker.previous, marker.checksum)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("its time and checksums must be text")
    require_reasons(marker.unchecked)
    return marker


def require_reasons(unchecked: Any) -> None:
    """Raise ``ValueError`` unless it is a short table from texts to counts."""
    if type(unchecked) is not dict or len(unchecked) > MAX_REASONS:
        raise ValueError("what was not checked is no table, or too long")
    for reason, count in unchecked.items():
        require_count(count)
        if len(reason) > REASON_LENGTH:
            raise ValueError("a reason is too long")


def file_of(values: dict[str, Any]) -> File:
    """Build a file entry from JSON values and check every field; raises as ``marker_of`` does."""
    file = File(**known_fields(values, File))
    if not isinstance(file.key, str) or not isinstance(file.kind, str):
        raise ValueError("a file's key and kind must be text")
    checked_key("", file.key).encode()
    require_count(file.num_bytes)
    if file.rows is not None:
        require_count(file.rows)
    if not CHECKSUM.fullmatch(file.sha256):
        raise ValueError(f"{file.key} has no checksum")
    if file.footer_sha256 and not CHECKSUM.fullmatch(file.footer_sha256):
        raise ValueError(f"the footer of {file.key} has no checksum")
    return file


def known_fields(values: dict[str, Any], kind: type) -> dict[str, Any]:
    """Return the values that are fields of a dataclass."""
    return {f.name: values[f.name] for f in fields(kind) if f.name in values}


def require_count(number: Any) -> int:
    """Raise ``ValueError`` unless a number can count rows, bytes or steps."""
    # "type(…) is int" rather than isinstance, because a bool is an int too.
    if type(number) is not int or not 0 <= number < MAX_COUNT:
        raise ValueError("a number of rows, bytes or steps is not a possible count")
    return number


def refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def encode(values: dict[str, Any]) -> bytes:
    """Encode a marker. Readers accept no other text for the same values."""
    return json.dumps(values, indent=1).encode()


def checksum(values: dict[str, Any]) -> str:
    """Return the SHA-256 of all fields but ``checksum``, as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def total_bytes(markers: Iterable[Marker]) -> int:
    """Return the size of all files that some markers list."""
    return sum(file.num_bytes for marker in markers for file in marker.files)
