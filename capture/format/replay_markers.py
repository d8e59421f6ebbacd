"""Markers of what replaying added: one a segment and kind, beside the segment's own.

A record that is added later is vouched for by a marker of its own, which follows the segment's (it
carries its checksum) and is written last. It is in no chain, so a run goes on as if it were not
there; and it is found by a listing, so on a store whose listings lag a record may show up late.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from capture.config.records import KINDS, RecordKind
from capture.errors import ShardError
from capture.format.markers import FOLDER, File, Marker, read_marker, segment_key, write_marker
from capture.store.store import Store

NAME = re.compile(FOLDER + r"/segment-(\d{6,9})-(" + "|".join(KINDS) + r")\.json")
REMEDY = "Delete it and replay the segment again"


def replay_key(segment: int, kind: RecordKind) -> str:
    return segment_key(segment).removesuffix(".json") + f"-{kind}.json"


def replay_of(key: str) -> tuple[int, RecordKind] | None:
    """Segment and kind whose marker a key is; None for other keys."""
    found = NAME.fullmatch(key)
    for kind in KINDS:
        if found and replay_key(int(found[1]), kind) == key:
            return int(found[1]), kind
    return None


def misfit(marker: Marker, segment: Marker | None, kind: RecordKind) -> str:
    """Why a marker is not of a record of this segment; empty where it may be."""
    if segment is None:
        return "is of a segment that is not there"
    if (marker.first_step, marker.end_step) != (segment.first_step, segment.end_step):
        return "is of other steps than its segment"
    if marker.previous != segment.checksum:
        return "is of another run or an older state: it does not follow its segment's marker"
    if any(file.kind != kind for file in marker.files):
        return f"names files that are no {kind}"
    return ""


def with_replayed(store: Store, segments: Iterable[Marker]) -> tuple[Marker, ...]:
    """The segments' markers, each with the files that were added to it later.

    Raises ``ShardError`` for a marker that is damaged or of another run.
    """
    found, keys = list(segments), store.keys(FOLDER)
    for key in keys:
        place = replay_of(key)
        if place is None or place[0] >= len(found):
            continue
        segment, kind = place
        marker, own = read_marker(store, key), found[segment]
        if problem := misfit(marker, own, kind):
            raise ShardError(f"{store.uri}/{key}", problem, REMEDY)
        there = {file.key for file in own.files}
        more = tuple(file for file in marker.files if file.key not in there)
        found[segment] = replace(own, files=own.files + more)
    return tuple(found)


def read_replays(
    store: Store, keys: Iterable[str], markers: Mapping[str, Marker]
) -> tuple[dict[str, Marker], dict[str, str]]:
    """The readable markers of added records, and what is wrong with any, by key.

    ``markers``: those of the segments, by key.
    """
    readable, problems = dict[str, Marker](), dict[str, str]()
    for key in keys:
        place = replay_of(key)
        if place is None:
            continue
        try:
            readable[key] = read_marker(store, key)
        except ShardError as error:
            problems[key] = error.problem
            continue
        problem = misfit(readable[key], markers.get(segment_key(place[0])), place[1])
        if problem:
            problems[key] = problem
    return readable, problems


def write_replay(
    store: Store, segment: int, kind: RecordKind, files: list[File], own: Marker
) -> None:
    """Make a record exist, unless another replay has done so.

    Raises ``ShardError`` if the segment is another one by now, or a file has gone: a run may be
    replaced or cleaned up while it is replayed.
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
