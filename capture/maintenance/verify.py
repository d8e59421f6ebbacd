"""Check that every file of a run is what its marker says: recompute all checksums and row counts.

This detects any change of a marker, of a file that a marker lists, and of the chain of markers. It
cannot detect someone who rewrites files together with all later markers and their checksums, a run
that was cut back to an earlier state with markers and files, or a copy of the last marker that
lists the same bytes.

A capture, an analysis or a replay may write to the run meanwhile. Whatever seems damaged or missing
is therefore looked at twice, and a running capture may have an open segment. A replay leaves no
sign that it runs, so a record without a marker is missing only when its files are ``GRACE`` old.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

from capture.errors import CaptureError, RunError, ShardError, StoreAwayError
from capture.format import window_markers
from capture.format.chain import chain_problem, existing_segments, require_start
from capture.format.markers import START, File, Marker, read_marker, segment_key, segment_of
from capture.format.replay_markers import parse_replay_key, read_replays
from capture.format.window_markers import read_window, window_problem
from capture.maintenance.unmarked import GRACE, lost_records
from capture.shards.verified_parquet import open_parquet
from capture.store import Store, lease
from capture.store.access import require_folder

DERIVED = {"analysis": "tables.json", "report": "pages.json"}
"""Folders of files that are derived from the run, and the names of their markers."""
BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Finding:
    """A file that is not as it should be."""

    key: str
    state: Literal["damaged", "missing", "unlisted"]
    """unlisted: no marker lists the file, as after an interrupted capture."""
    detail: str = ""


def verify(store: Store, report: Callable[[File], None] = lambda file: None) -> list[Finding]:
    """Return everything that is wrong with a run.

    ``report`` is called with each file before the file is read. Raises ``RunError`` if there is no
    run, or if its schema is newer.
    """

    require_folder(store)

    def reported(file: File) -> list[Finding]:
        report(file)
        return check_file(store, file)

    findings = survey(store, reported)
    suspects = {finding.key for finding in findings if finding.state != "unlisted"}
    if not suspects:
        return findings
    # A file or a marker may have been replaced between two reads: look again at what seems wrong.
    again = survey(store, lambda file: check_file(store, file) if file.key in suspects else [])
    return [finding for finding in again if finding.key in suspects or finding.state == "unlisted"]


def survey(store: Store, check: Callable[[File], list[Finding]]) -> list[Finding]:
    """Read all markers and ``check`` each file that they list; return all findings."""
    running, findings = lease_state(store)  # before the listing, which it explains
    keys = store.keys()
    if START not in keys and segment_key(0) not in keys:
        require_start(store)
    window, problem = read_window(store)  # before the chain: a capture commits the segment first
    markers, more = read_chain(store, keys)
    findings += more
    derived, more = read_derived(store, keys, markers)
    findings += more
    added, problems = read_replays(store, keys, markers)
    findings += [Finding(key, "damaged", problem) for key, problem in problems.items()]
    if problem := problem or window_problem(window, markers):
        findings.append(Finding(window_markers.KEY, "damaged", problem))
    listed = {START, lease.KEY, *(key for key in keys if is_marker(key))}
    others = [window] if window and not problem else []
    for marker in [*markers.values(), *derived.values(), *added.values(), *others]:
        for file in marker.files:
            listed.add(file.key)
            findings += check(file)
    unlisted = [key for key in keys if key not in listed and not in_unmarked_report(key, listed)]
    detail = "no marker lists it; a capture is running" if running else "no marker lists it"
    details = dict.fromkeys(unlisted, detail)
    for record in lost_records(store, unlisted, markers):
        if record.age(store) < GRACE:
            young = f"no marker lists it yet; a replay may be running, or has lost {record.marker}"
            details |= dict.fromkeys(record.keys, young)
            continue
        problem = f"its files exist: it was lost, or a replay ended before it. {record.remedy}"
        findings.append(Finding(record.marker, "missing", problem))
    findings += [Finding(key, "unlisted", text) for key, text in details.items()]
    return findings if running else findings + list(check_next(unlisted, markers))


def lease_state(store: Store) -> tuple[str, list[Finding]]:
    """Return which process holds the run's lease, if any, and the problem of a damaged lease."""
    try:
        return lease.running_capture(store), []
    except RunError as error:
        problem = f"{error.problem}. {error.remedy}"
        return "", [Finding(lease.KEY, "damaged", problem)]


# --- markers --------------------------------------------------------------------------------------


def read_chain(store: Store, keys: list[str]) -> tuple[dict[str, Marker], list[Finding]]:
    """Return the readable markers of the start and the segments, and the problems of any."""
    wanted = [START, *map(segment_key, expected_segments(existing_segments(store, keys)))]
    markers: dict[str, Marker] = {}
    findings = []
    for key in wanted:
        if key not in keys and not store.exists(key):
            findings.append(Finding(key, "missing", "a later segment exists"))
            continue
        try:
            markers[key] = read_marker(store, key)
        except RunError:
            raise
        except ShardError as error:
            findings.append(Finding(key, "damaged", error.problem))
    return markers, findings + list(check_order(wanted, markers))


def expected_segments(numbers: list[int]) -> list[int]:
    """Return the segments that exist and up to 100 that are missing before each of them.

    The limit keeps a marker with a very large number from causing as many findings.
    """
    found: list[int] = []
    for before, number in zip([-1, *numbers], numbers, strict=False):
        found += range(max(before + 1, number - 100), number + 1)
    return found


def check_order(keys: list[str], markers: dict[str, Marker]) -> Iterator[Finding]:
    """Check that each marker follows the one before it, and that the start has none before it."""
    start = markers.get(START)
    if start and (start.previous or start.end_step):
        yield Finding(START, "damaged", "is not the marker of a run's start")
    for before, after in itertools.pairwise(keys):
        if before in markers and after in markers:
            problem = chain_problem(markers[before], markers[after])
            if problem:
                yield Finding(after, "damaged", problem)


def check_next(unlisted: list[str], markers: dict[str, Marker]) -> Iterator[Finding]:
    """Report a missing last marker if all files of one more segment exist.

    A capture that is killed between its last file and the marker leaves the same files.
    """
    segment = max(
        (number for key in markers if (number := segment_of(key)) is not None), default=-1
    )
    name = f"segment-{segment + 1:06d}"
    # Every segment has steps and a checkpoint; outliers only where all before have them.
    before = [marker for key, marker in markers.items() if segment_of(key) is not None]
    has_outliers = all(marker.files_of("outliers") for marker in before)
    wanted = [f"steps/{name}", "checkpoints/step-", *[f"outliers/{name}"] * has_outliers]
    if all(any(key.startswith(beginning) for key in unlisted) for beginning in wanted):
        detail = "its files exist: it was lost, or capture ended before it. Continue with --resume"
        yield Finding(segment_key(segment + 1), "missing", detail)


def read_derived(
    store: Store, keys: list[str], markers: dict[str, Marker]
) -> tuple[dict[str, Marker], list[Finding]]:
    """Return the readable markers of tables and reports, and the problems of any."""
    descent = {marker.end_step: marker.checksum for marker in markers.values()}
    derived: dict[str, Marker] = {}
    findings = []
    for key in sorted({marker_of(key) for key in keys} - {""}):
        try:
            marker = read_marker(store, key) if key in keys else None
        except ShardError as error:
            findings.append(Finding(key, "damaged", error.problem))
            continue
        if marker is None:
            if key.startswith("analysis/"):
                findings.append(Finding(key, "missing", "make its tables again"))
            continue
        derived[key] = marker
        if any(marker_of(file.key) != key for file in marker.files):
            findings.append(Finding(key, "damaged", "lists files that are not beside it"))
        elif marker.previous and marker.previous != descent.get(marker.end_step):
            findings.append(
                Finding(key, "damaged", foreign_tables(marker, max(descent, default=0)))
            )
    return derived, findings


def foreign_tables(marker: Marker, end_step: int) -> str:
    """Say what is wrong with tables that do not follow a marker of a run of so many steps."""
    if marker.end_step <= end_step:
        return "was made from another run; make it again"
    left = f"was made from {marker.end_step} steps, but markers are left of {end_step}"
    return f"{left}: restore those that were lost, or make it again"


def marker_of(key: str) -> str:
    """Return the key of the marker of a derived file; empty for the files of the run itself."""
    parts = PurePosixPath(key).parts
    name = DERIVED.get(parts[0], "")
    # Tables lie in analysis/JOB/, those with a name of their own in analysis/JOB/NAME/.
    depth = min(max(len(parts) - 1, 2), 3) if parts[0] == "analysis" else 1
    return "/".join([*parts[:depth], name]) if name and len(parts) > depth else ""


def is_marker(key: str) -> bool:
    """Whether a key is that of a segment's, a derived file's, a replay's or a window's marker."""
    if key == window_markers.KEY or marker_of(key) == key:
        return True
    return segment_of(key) is not None or parse_replay_key(key) is not None


def in_unmarked_report(key: str, listed: set[str]) -> bool:
    """Whether a file belongs to a report without a marker, which another tool can have made."""
    return key.startswith("report/") and marker_of(key) not in listed


# --- files ----------------------------------------------------------------------------------------


def check_file(store: Store, file: File) -> list[Finding]:
    """Return the first problem of a file, or nothing."""
    where = f"{store.uri}/{file.key}"
    try:
        with store.open(file.key) as source:
            problem = check_bytes(source, file) or check_rows(source, file, where)
    except FileNotFoundError:
        return [Finding(file.key, "missing")]
    except StoreAwayError:
        raise
    except CaptureError as error:
        problem = error.problem
    return [Finding(file.key, "damaged", problem)] if problem else []


def check_bytes(source: BinaryIO, file: File) -> str:
    """Check size and checksum, one block at a time. Returns the problem, or an empty string."""
    digest, size = hashlib.sha256(), 0
    while block := source.read(min(BLOCK_BYTES, file.num_bytes + 1 - size)):
        digest.update(block)
        size += len(block)
    if size != file.num_bytes:
        return f"{'more' if size > file.num_bytes else f'{size:,}'} bytes, not {file.num_bytes:,}"
    return "" if digest.hexdigest() == file.sha256 else "its checksum differs"


def check_rows(source: BinaryIO, file: File, where: str) -> str:
    """Check the number of rows of a table. Returns the problem, or an empty string."""
    if file.rows is None:
        return ""
    extent = {"num_bytes": file.num_bytes, "footer_checksum": file.footer_sha256}
    with open_parquet(source, where, **extent) as opened:
        found = opened.metadata.num_rows
    return "" if found == file.rows else f"{found} rows, not {file.rows}"
