"""Find and remove garbage: files of a run that no marker lists.

An interrupted capture or analysis leaves them behind. They do no harm, because readers use only
what a marker lists, but they take space. Files that cannot be part of a run are never removed.
Files are written before their marker, so a part that is being written looks like garbage too.
Therefore the run's lease is held while files are removed, so that no capture starts meanwhile, and
nothing is removed that is younger than a grace period, which protects analyses and replays. Each
file is looked at again right before it is removed: its age, and the markers that may list it now.
"""

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

from capture.errors import ShardError
from capture.format import window_markers
from capture.format.chain import read_segments, require_start
from capture.format.markers import FOLDER, START, read_marker, segment_key
from capture.format.replay_markers import read_replays
from capture.format.window_markers import read_window, window_problem
from capture.maintenance.unmarked import GRACE, lost_records
from capture.maintenance.verify import marker_of, read_derived
from capture.store import Store, lease
from capture.training.run_start import TOP_LEVEL_NAMES

PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}")
"""Name of a file that was being written to a folder."""


@dataclass(frozen=True)
class Garbage:
    """A file that no marker lists."""

    key: str
    age: timedelta
    kept: bool
    """Whether the file is not to be removed."""
    reason: str = ""
    """Why it is kept."""


def find_garbage(
    store: Store, grace: timedelta = GRACE, now: datetime | None = None
) -> list[Garbage]:
    """Find all garbage, sorted by key. Ages compare this machine's clock with the store's.

    Raises ``ShardError`` if a marker is damaged or missing, because its files would look like
    garbage, and ``RunError`` if there is no run.
    """
    listed, lost = listed_keys(store)
    unlisted = [key for key in store.keys() if key not in listed and is_run_file(key)]
    partial = [key for key in store.unfinished() if is_partial(key)]
    now = now or datetime.now(UTC)
    found = []
    for key in sorted({*unlisted, *partial}):
        try:
            age = now - store.modified(key)
        except FileNotFoundError:
            continue  # the listing was old, or the write has just finished
        reason = "too young" if age < grace else lost.get(key, "")
        found.append(Garbage(key, age, bool(reason), reason))
    return found


def remove_garbage(
    store: Store,
    grace: timedelta = GRACE,
    report: Callable[[lease.TakenOver], None] = lambda event: None,
) -> list[Garbage]:
    """Remove garbage that is old enough. Returns all garbage that was found.

    The run's lease is held meanwhile; ``report`` is called if a stale one was taken over. Raises
    ``RunError`` if a capture holds the run, and the errors of ``find_garbage``.
    """
    require_start(store)  # before a lease is written to a folder that holds no run
    with lease.hold_lease(store, report, f"{lease.CLEANING}{uuid.uuid4().hex}") as held:
        known = set(store.keys(FOLDER))
        found = [garbage for garbage in find_garbage(store, grace) if garbage.key != lease.KEY]
        return [remove_if_still_garbage(store, garbage, grace, held, known) for garbage in found]


def remove_if_still_garbage(
    store: Store, garbage: Garbage, grace: timedelta, held: lease.HeldLease, known: set[str]
) -> Garbage:
    """Remove one file unless it was written again, or a marker lists it, since it was found.

    ``known``: keys of the folder of markers that were read.
    """
    if garbage.kept:
        return garbage
    try:
        young = datetime.now(UTC) - store.modified(garbage.key) < grace
    except FileNotFoundError:
        return garbage
    if young:
        return replace(garbage, kept=True, reason="too young")
    if is_listed_by_now(store, garbage.key, known):
        return replace(garbage, kept=True, reason="a marker names it by now")
    held.require()
    store.delete(garbage.key)
    return garbage


def is_listed_by_now(store: Store, key: str, known: set[str]) -> bool:
    """Whether a marker lists a file that none of the markers listed that were read before."""
    if marker := marker_of(key):
        files = read_marker(store, marker).files if store.exists(marker) else ()
        return key in {file.key for file in files}
    now = set(store.keys(FOLDER))
    if now <= known:
        return False  # replays only add markers, and no capture runs
    known |= now
    return key in listed_keys(store)[0]


def listed_keys(store: Store) -> tuple[set[str], dict[str, str]]:
    """Return the keys that must stay, and the keys of records whose marker was lost.

    The first are markers and the files that they list; the second have the reason to keep them.
    """
    window, problem = read_window(store)
    start, segments = require_start(store), read_segments(store)
    chain = {segment_key(number): marker for number, marker in enumerate(segments)}
    keys = store.keys()
    derived, findings = read_derived(store, keys, {START: start, **chain})
    added, problems = read_replays(store, keys, chain)
    if window:
        added[window_markers.KEY] = window
    if problem := problem or window_problem(window, {START: start, **chain}):
        problems[window_markers.KEY] = problem
    damaged = [(f.key, f.detail) for f in findings if f.state == "damaged"] + [*problems.items()]
    for key, problem in damaged:
        raise ShardError(f"{store.uri}/{key}", problem, "Make its tables again, or delete it")
    markers = {START: start, **chain, **derived, **added}
    listed = {*markers, *(file.key for marker in markers.values() for file in marker.files)}
    unlisted = (key for key in keys if key not in listed)
    records = lost_records(store, unlisted, {START: start, **chain})
    lost = {
        key: f"{each.marker} is missing: {each.remedy}" for each in records for key in each.keys
    }
    return listed, lost


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
