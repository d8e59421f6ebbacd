"""Find and remove garbage: files of a run that no marker lists.

An interrupted capture or analysis leaves them behind. They do no harm, because readers use only
what a marker lists, but they take space. Files that cannot be part of a run are never removed.
Files are written before their marker, so a part that is being written looks like garbage too.
Therefore nothing is removed while a capture holds the run, and nothing that is younger than a grace
period, which protects analyses and captures on other machines.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

from capture.errors import ShardError
from capture.format.markers import START, read_segments, require_start, segment_key
from capture.format.replay_markers import read_replays
from capture.maintenance.verify import read_derived
from capture.store import Store
from capture.store.lease import stale_lease
from capture.training.run_start import TOP_LEVEL_NAMES

GRACE = timedelta(minutes=10)
"""Default age below which files are kept, because their marker may be written soon."""
PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}")
"""Name of a file that was being written to a folder."""


@dataclass(frozen=True)
class Garbage:
    """A file that no marker lists."""

    key: str
    age: timedelta
    kept: bool
    """Whether the file is too young to be removed."""


def find_garbage(
    store: Store, grace: timedelta = GRACE, now: datetime | None = None
) -> list[Garbage]:
    """Find all garbage, sorted by key. Ages compare this machine's clock with the store's.

    Raises ``ShardError`` if a marker is damaged or missing, because its files would look like
    garbage, and ``RunError`` if there is no run.
    """
    listed = listed_keys(store)
    unlisted = [key for key in store.keys() if key not in listed and is_run_file(key)]
    partial = [key for key in store.unfinished() if is_partial(key)]
    now = now or datetime.now(UTC)
    found = []
    for key in sorted({*unlisted, *partial}):
        try:
            age = now - store.modified(key)
        except FileNotFoundError:
            continue  # the listing was old, or the write has just finished
        found.append(Garbage(key, age, age < grace))
    return found


def remove_garbage(store: Store, grace: timedelta = GRACE) -> list[Garbage]:
    """Remove garbage that is old enough. Returns all garbage that was found.

    Raises ``RunError`` if a capture holds the run, and the errors of ``find_garbage``.
    """
    stale_lease(store)
    found = find_garbage(store, grace)
    for garbage in found:
        if not garbage.kept:
            store.delete(garbage.key)
    return found


def listed_keys(store: Store) -> set[str]:
    """Return the keys that must stay: markers, and the files that they list."""
    start, segments = require_start(store), read_segments(store)
    chain = {segment_key(number): marker for number, marker in enumerate(segments)}
    keys = store.keys()
    derived, findings = read_derived(store, keys, {START: start, **chain})
    added, problems = read_replays(store, keys, chain)
    damaged = [(f.key, f.detail) for f in findings if f.state == "damaged"] + [*problems.items()]
    for key, problem in damaged:
        raise ShardError(f"{store.uri}/{key}", problem, "Make its tables again, or delete it")
    markers = {START: start, **chain, **derived, **added}
    return {*markers, *(file.key for marker in markers.values() for file in marker.files)}


def is_run_file(key: str) -> bool:
    """Whether a key lies in a folder of a run, except in its report, which may have no marker."""
    top, slash, _ = key.partition("/")
    return bool(slash) and top in TOP_LEVEL_NAMES and top != "report"


def is_partial(key: str) -> bool:
    """Whether a key is an unfinished write to a file of a run."""
    path = PurePosixPath(key)
    found = PARTIAL.fullmatch(path.name)
    top = path.parts[0] if len(path.parts) > 1 else found and found[1]
    return bool(found) and top in TOP_LEVEL_NAMES
