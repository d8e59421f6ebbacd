"""The chain of markers: the start of a run and its segments, in order, read as one."""

from collections.abc import Iterable

from capture.errors import RunError, ShardError
from capture.format.markers import FOLDER, START, Marker, read_marker, segment_key, segment_of
from capture.store.access import require_folder
from capture.store.parallel import map_in_parallel
from capture.store.store import Store


def read_segments(store: Store) -> list[Marker]:
    """Read the markers of all segments, in order.

    Raises ``ShardError`` if one is missing, damaged, or does not follow the marker before it.
    """
    found = existing_segments(store, store.keys(FOLDER))
    listed = set(found)
    markers: list[Marker] = []
    before = read_marker(store, START) if store.exists(START) else None

    def read(segment: int) -> Marker:
        key = segment_key(segment)
        if segment not in listed and not store.exists(key):
            problem = f"is missing although {segment_key(found[-1])} exists"
            raise ShardError(f"{store.uri}/{key}", problem, "Restore it from a copy")
        return read_marker(store, key)

    segments = range(found[-1] + 1 if found else 0)
    for segment, marker in enumerate(map_in_parallel(read, segments, store.requests_at_once)):
        problem = chain_problem(before, marker) if before else ""
        if problem:
            where = f"{store.uri}/{segment_key(segment)}"
            raise ShardError(where, problem, "Restore it from a copy")
        markers.append(marker)
        before = marker
    return markers


def existing_segments(store: Store, keys: Iterable[str]) -> list[int]:
    """Return the numbers of the segments whose markers exist, ascending.

    ``keys`` is a listing, which may lag behind the store. Its end is therefore corrected: the last
    segment returned exists, and the one after it does not.
    """
    found = sorted(number for key in keys if (number := segment_of(key)) is not None)
    while found and not store.exists(segment_key(found[-1])):
        found.pop()
    end = found[-1] + 1 if found else 0
    while store.exists(segment_key(end)):
        found.append(end)
        end += 1
    return found


def chain_problem(before: Marker, after: Marker) -> str:
    """Say why ``after`` cannot follow ``before`` in the chain; empty if it can."""
    if after.first_step != before.end_step:
        return f"begins at step {after.first_step}, the one before ended at {before.end_step}"
    if after.previous and after.previous != before.checksum:
        return "is of another run or an older state: it does not follow the marker before it"
    return ""


def require_start(store: Store) -> Marker:
    """Read the marker of the run's start. Raises ``RunError`` if there is no run."""
    if store.exists(START):
        return read_marker(store, START)
    if store.exists(segment_key(0)):
        problem = f"is missing although {segment_key(0)} exists"
        raise ShardError(f"{store.uri}/{START}", problem, "Restore it from a copy")
    require_folder(store)
    raise RunError(store.uri, "holds no run", "Make one with: ontogeny capture CONFIG run.uri=…")
