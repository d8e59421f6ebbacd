"""What lies in a run that no marker names: left by a capture or an analysis that was interrupted.

It does no harm (readers ask markers), but takes space. Only what could be a part of a run counts:
foreign files are nobody's garbage. Whoever writes puts files first and their marker last, so what
is being written looks like garbage too. Hence nothing is removed while a capture holds the run, and
nothing that is younger than a grace period, which covers analyses and captures elsewhere.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

from capture.errors import ShardError
from capture.format.markers import START, read_segments, require_start, segment_key
from capture.format.replay_markers import read_replays
from capture.maintenance.verify import read_derived
from capture.store.lease import left_behind
from capture.store.store import Store
from capture.training.run_start import PARTS

GRACE = timedelta(minutes=10)
"""By default, younger files are kept: they may be about to get their marker."""
PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}")
"""What an unfinished write of ours to a folder is called."""


@dataclass(frozen=True)
class Garbage:
    """A file that no marker names."""

    key: str
    age: timedelta
    kept: bool
    """Whether it is too young to be removed."""


def find_garbage(
    store: Store, grace: timedelta = GRACE, now: datetime | None = None
) -> list[Garbage]:
    """All of it, in order of the keys; ages are by this machine's clock and the store's.

    Raises ``ShardError`` where a marker is damaged or missing (what it names would look like
    garbage) and ``RunError`` where there is no run.
    """
    named = named_keys(store)
    unnamed = [key for key in store.keys() if key not in named and of_run(key)]
    partial = [key for key in store.unfinished() if is_partial(key)]
    now = now or datetime.now(UTC)
    found = []
    for key in sorted({*unnamed, *partial}):
        try:
            age = now - store.modified(key)
        except FileNotFoundError:
            continue  # an old listing, or it has just been finished
        found.append(Garbage(key, age, age < grace))
    return found


def remove_garbage(store: Store, grace: timedelta = GRACE) -> list[Garbage]:
    """Remove what is old enough; returns what was there before. Raises ``RunError`` for a run in
    use, and what ``find_garbage`` raises."""
    left_behind(store)
    found = find_garbage(store, grace)
    for garbage in found:
        if not garbage.kept:
            store.delete(garbage.key)
    return found


def named_keys(store: Store) -> set[str]:
    """All that must stay: markers, and what they name."""
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


def of_run(key: str) -> bool:
    """Whether a key is in a run's own folders; of a report no marker tells what belongs to it."""
    top, slash, _ = key.partition("/")
    return bool(slash) and top in PARTS and top != "report"


def is_partial(key: str) -> bool:
    path = PurePosixPath(key)
    found = PARTIAL.fullmatch(path.name)
    top = path.parts[0] if len(path.parts) > 1 else found and found[1]
    return bool(found) and top in PARTS
