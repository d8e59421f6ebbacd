"""Markers of the records that a replay adds: one per segment and kind of record.

A record that is added later has a marker of its own, written last, which contains the checksum of
the segment's marker. It is not part of the chain, so a run can continue regardless of it. Readers
find it by a listing, so on a store whose listings lag a record can appear late.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from capture.config.records import KINDS, RecordKind
from capture.errors import ShardError
from capture.format.markers import FOLDER, File, Marker, read_marker, segment_key, write_marker
from capture.store import Store
from capture.store.parallel import map_in_parallel

NAME = re.compile(FOLDER + r"/segment-(\d{6,9})-(" + "|".join(KINDS) + r")\.json")
REMEDY = "Delete it and replay the segment again"


def replay_key(segment: int, kind: RecordKind) -> str:
    """Return the key of the marker of a record that was added to a segment."""
    return segment_key(segment).removesuffix(".json") + f"-{kind}.json"


def parse_replay_key(key: str) -> tuple[int, RecordKind] | None:
    """Return segment and kind of the added record whose marker this key is; None for other keys."""
    found = NAME.fullmatch(key)
    for kind in KINDS:
        if found and replay_key(int(found[1]), kind) == key:
            return int(found[1]), kind
    return None


def replay_problem(marker: Marker, segment: Marker | None, kind: RecordKind) -> str:
    """Say why a marker cannot belong to a record of this segment; empty if it can."""
    if segment is None:
        return "belongs to a segment that does not exist"
    if (marker.first_step, marker.end_step) != (segment.first_step, segment.end_step):
        return "has other steps than its segment"
    if marker.previous != segment.checksum:
        return "is of another run or an older state: it does not follow its segment's marker"
    if any(file.kind != kind for file in marker.files):
        return f"lists files that are not {kind}"
    return ""


def add_replayed_files(store: Store, segments: Iterable[Marker]) -> tuple[Marker, ...]:
    """Return the segments' markers, each with the files that replays added to it.

    Raises ``ShardError`` for a replay marker that is damaged or belongs to another run.
    """
    found = list(segments)
    added = {
        key: parsed
        for key in store.keys(FOLDER)
        if (parsed := parse_replay_key(key)) and parsed[0] < len(found)
    }
    markers = map_in_parallel(partial(read_marker, store), added, store.requests_at_once)
    for (key, (segment, kind)), marker in zip(added.items(), markers, strict=True):
        own = found[segment]
        if problem := replay_problem(marker, own, kind):
            raise ShardError(f"{store.uri}/{key}", problem, REMEDY)
        listed = {file.key for file in own.files}
        more = tuple(file for file in marker.files if file.key not in listed)
        found[segment] = replace(own, files=own.files + more)
    return tuple(found)


def read_replays(
    store: Store, keys: Iterable[str], markers: Mapping[str, Marker]
) -> tuple[dict[str, Marker], dict[str, str]]:
    """Return the readable markers of added records, and the problems of any, by key.

    ``markers``: the markers of the segments, by key.
    """
    readable, problems = dict[str, Marker](), dict[str, str]()
    for key in keys:
        parsed = parse_replay_key(key)
        if parsed is None:
            continue
        try:
            readable[key] = read_marker(store, key)
        except ShardError as error:
            problems[key] = error.problem
            continue
        problem = replay_problem(readable[key], markers.get(segment_key(parsed[0])), parsed[1])
        if problem:
            problems[key] = problem
    return readable, problems


def write_replay(
    store: Store, segment: int, kind: RecordKind, files: list[File], own: Marker
) -> None:
    """Write the marker of an added record, unless another replay has written it.

    Raises ``ShardError`` if the segment was replaced or a file was removed in the meantime: a run
    can be overwritten or cleaned up while it is replayed.
    """
    if read_marker(store, segment_key(segment)).checksum != own.checksum:
        where = f"{store.uri}/{segment_key(segment)}"
        raise ShardError(where, "was replaced while it was replayed", "Replay it again")
    for file in files:
        if not store.exists(file.key):
            problem = "was removed while its segment was replayed"
            raise ShardError(f"{store.uri}/{file.key}", problem, "Replay it again")
    key = replay_key(segment, kind)
    if not store.exists(key):
        marker = Marker(own.first_step, own.end_step, tuple(files))
        write_marker(store, key, replace(marker, retries=store.take_retries()), after=own)
