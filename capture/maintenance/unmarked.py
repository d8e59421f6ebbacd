"""Records of committed segments whose marker is missing, although their files exist.

A replay writes the files of a record first and its marker last. If all files of a record are there,
then the marker was lost, or the replay ended just before it, or it has yet to write it. A record
that is not complete was left by a replay that was interrupted.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from capture.config.records import RecordKind
from capture.errors import CaptureError, StoreAwayError
from capture.format.extent import Extent, read_extent
from capture.format.markers import START, Marker, segment_key
from capture.format.replay_markers import replay_key
from capture.format.tally_tables import parse_key
from capture.shards.verified_parquet import open_parquet
from capture.store import Store

GRACE = timedelta(minutes=10)
"""A file that no marker lists may be part of something that is being written, below this age."""
IN_SEGMENT = re.compile(r"(outliers|factors)/segment-(\d{6,9})-w\d{2,}.*\.parquet")


@dataclass
class UnmarkedRecord:
    """Files of a record that no marker lists."""

    segment: int
    kind: RecordKind
    keys: list[str] = field(default_factory=list)

    @property
    def marker(self) -> str:
        """Key of the marker that should list the files."""
        return replay_key(self.segment, self.kind)

    def age(self, store: Store) -> timedelta:
        """Return the time since the last file was written, by this machine's clock."""
        written = [store.modified(key) for key in self.keys]
        return datetime.now(UTC) - max(written)

    @property
    def remedy(self) -> str:
        return f"ontogeny replay RUN --record {self.kind} --segments {self.segment}"


def lost_records(
    store: Store, unlisted: Iterable[str], markers: Mapping[str, Marker]
) -> list[UnmarkedRecord]:
    """Return the complete records among unlisted files, whose marker is missing.

    ``markers``: the markers of start and segments, by key.
    """
    extent = read_extent(store, markers[START]) if START in markers else None
    found: dict[str, UnmarkedRecord] = {}
    for key in unlisted:
        record = record_of(key, extent)
        own = record and markers.get(segment_key(record.segment))
        if record and own and not own.files_of(record.kind):
            found.setdefault(record.marker, record).keys.append(key)
    return [
        record
        for record in found.values()
        if not store.exists(record.marker)
        and is_complete(store, record, markers[segment_key(record.segment)], extent)
    ]


def record_of(key: str, extent: Extent | None) -> UnmarkedRecord | None:
    """Return the record to which a file belongs, without its keys; None for any other file."""
    if found := IN_SEGMENT.fullmatch(key):
        return UnmarkedRecord(int(found[2]), "outliers" if found[1] == "outliers" else "factors")
    if (tally := parse_key(key)) and extent:
        return UnmarkedRecord(extent.segment_of_window(tally[2]), "tallies")
    return None


def is_complete(
    store: Store, record: UnmarkedRecord, segment: Marker, extent: Extent | None
) -> bool:
    """Whether no file of a record is missing.

    Only factors are written while a segment is replayed, so only they can be incomplete.
    """
    if record.kind != "factors" or extent is None:
        return True
    rows = sum(rows_of(store, key) for key in record.keys)
    return rows >= (segment.end_step - segment.first_step) * extent.batch


def rows_of(store: Store, key: str) -> int:
    """Return the number of rows of a table; 0 for one that cannot be read."""
    try:
        with store.open(key) as source:
            size = source.seek(0, 2)
            with open_parquet(source, f"{store.uri}/{key}", num_bytes=size) as opened:
                return opened.metadata.num_rows
    except StoreAwayError:
        raise
    except (CaptureError, FileNotFoundError):
        return 0
