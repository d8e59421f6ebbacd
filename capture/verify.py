"""Is every file of a run what its marker says? Recomputes all checksums and row counts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from capture import shards
from capture.errors import CaptureError
from capture.markers import FOLDER, START, File, Marker, read_marker, require_start, segment_key
from capture.store import Store

DERIVED = ("analysis/", "report/")
"""What can be made again from the run; no marker vouches for it."""


@dataclass(frozen=True)
class Finding:
    """One file that is not as it should be."""

    key: str
    state: Literal["damaged", "missing", "unlisted"]
    """unlisted: no marker names it; what an interrupted capture leaves of its open segment."""
    detail: str = ""


def verify(store: Store, report: Callable[[File], None] = lambda file: None) -> list[Finding]:
    """Everything that is wrong with a run; ``report`` is called with each file before it is read.

    Raises ``RunError`` where there is no run.
    """
    require_start(store)
    markers, findings = read_all_markers(store)
    keys = store.keys()
    listed = {key for key in keys if key.startswith(f"{FOLDER}/")}
    for marker in markers:
        for file in marker.files:
            listed.add(file.key)
            report(file)
            findings += check_file(store, file)
    unlisted = [key for key in keys if key not in listed and not key.startswith(DERIVED)]
    return findings + [Finding(key, "unlisted", "named by no marker") for key in unlisted]


def read_all_markers(store: Store) -> tuple[list[Marker], list[Finding]]:
    """The readable markers, and what is wrong with the others or with their order."""
    keys = [key for key in store.keys(FOLDER) if key != START]
    wanted = [segment_key(number) for number in range(len(keys))]
    absent = [key for key in wanted if key not in keys]
    findings = [Finding(key, "missing", "a later segment exists") for key in absent]
    findings += [Finding(key, "unlisted", "not a marker's name") for key in set(keys) - set(wanted)]
    markers = []
    for key in [START, *keys]:
        try:
            markers.append(read_marker(store, key))
        except CaptureError as error:
            findings.append(Finding(key, "damaged", error.problem))
    return markers, findings + list(check_order(markers, keys))


def check_order(markers: list[Marker], keys: list[str]) -> Iterator[Finding]:
    """Each segment must begin where the one before it ended."""
    for before, after, key in zip(markers, markers[1:], keys, strict=False):
        if len(markers) == len(keys) + 1 and after.first_step != before.end_step:
            detail = f"begins at step {after.first_step}, the one before ended at {before.end_step}"
            yield Finding(key, "damaged", detail)


def check_file(store: Store, file: File) -> list[Finding]:
    """At most one finding: the first thing that is wrong with a file."""
    try:
        data = store.get(file.key)
    except FileNotFoundError:
        return [Finding(file.key, "missing")]
    if len(data) != file.num_bytes:
        return [Finding(file.key, "damaged", f"{len(data)} bytes, not {file.num_bytes}")]
    if File.of(file.key, file.kind, data).sha256 != file.sha256:
        return [Finding(file.key, "damaged", "its checksum differs")]
    if file.rows is not None and (found := rows_of(data)) != file.rows:
        return [Finding(file.key, "damaged", f"{found} rows, not {file.rows}")]
    return []


def rows_of(data: bytes) -> int | str:
    try:
        return shards.count_rows(data)
    except pa.ArrowException:
        return "unreadable"
