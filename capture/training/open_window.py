"""Store the sums of the tally window that is open when a segment ends, for a later resume.

Tallies are stored when their window ends, because their sums are large. If capture is interrupted
before that, the window's steps would have to be taken again from its first one. So the sums so far
are stored beside the segments, and replaced at the end of each segment: exact, and one file per
worker, because sums of several workers are added up only when the window ends. A marker of its own
names the files, and follows that of the segment whose end they belong to. They are removed when the
window ends, so a run whose windows have all ended has none.

Large sums are stored less often, so that they never cost more than ``BYTES_PER_SEGMENT`` a segment.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from capture.errors import ShardError
from capture.format.checkpoint import read_listed
from capture.format.markers import File, Marker, read_marker, write_marker
from capture.format.window_markers import FOLDER, KEY, KIND, window_file
from capture.process_group import Group
from capture.shifts.tallies import Tally
from capture.store import Store

BYTES_PER_SEGMENT = 2**27
"""About what a segment of the study's run takes anyway, with its checkpoint. Its window's sums take
about eight times as much, and storing them costs a second of training."""


class OpenWindow:
    """This worker's sums of the open window at the end of a segment, to be stored."""

    def __init__(self, first_step: int, end_step: int, sums: dict[str, Tensor]) -> None:
        """``sums``: from ``Tally.state``; ``first_step``: the window's."""
        self.first_step = first_step
        self.end_step = end_step
        self.sums = sums
        self.files: list[File] = []
        """Files of all workers, once they are stored."""

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.sums.values())

    def write(
        self, store: Store, group: Group, segment: Marker | None, may_commit: Callable[[], None]
    ) -> int:
        """Store the sums and their marker, and remove older ones; returns 0, the bytes that stay.

        ``segment``: marker of the segment that ends here, on the first worker. Can be called again
        after a failure.
        """
        if not self.files:  # exchanged once: the exchange is a collective
            may_commit()
            data = save(self.sums)
            file = File.of(window_file(self.end_step, group.rank), KIND, data)
            store.put(file.key, data)
            self.files = [File(**values) for values in group.all_gather_object(asdict(file))]
        if group.rank == 0:
            may_commit()
            marker = Marker(self.first_step, self.end_step, tuple(self.files))
            older = listed_files(store)
            write_marker(store, KEY, marker, after=segment)
            remove_others(store, older, {file.key for file in self.files})
        return 0


def is_stored(tally: Tally, segment: int) -> bool:
    """Whether the sums are stored at the end of a segment: of each, or of each n-th if large."""
    most = sum(tensor.nbytes for tensor in tally.sum_VK.values())
    return (segment + 1) % -(-most // BYTES_PER_SEGMENT) == 0


def remove_window(store: Store) -> None:
    """Remove the stored sums of a window that has ended: the marker first."""
    older = listed_files(store)
    store.delete(KEY)
    remove_others(store, older, set())


def listed_files(store: Store) -> set[str]:
    """Return the keys that the marker lists; none if there is no readable marker."""
    try:
        return {file.key for file in read_marker(store, KEY).files if is_window(file.key)}
    except ShardError:
        return set()


def remove_others(store: Store, older: set[str], kept: set[str]) -> None:
    """Remove the sums that a later marker has replaced, or that an interruption has left.

    ``older``: keys that the earlier marker listed, because a listing of the store may lag behind.
    """
    for key in sorted(older | {key for key in store.keys(FOLDER) if is_window(key)}):
        if key not in kept:
            store.delete(key)


def is_window(key: str) -> bool:
    return key.startswith(f"{FOLDER}/window-")


def load_window(
    store: Store, tally: Tally, group: Group, markers: Sequence[Marker], opened: int
) -> Marker | None:
    """Load the stored sums of the window that began at step ``opened`` into the tally.

    Returns the marker of the segment (or start) at whose end they were taken. Returns None, on all
    workers alike, if there are none of this window and this number of workers, or if they are
    damaged: then the steps of the window are taken again.
    """
    found = segment_of_sums(store, group, markers, opened)
    loaded = found is not None and load_own(store, tally, group)
    return found if all(group.all_gather_object(loaded)) else None


def segment_of_sums(
    store: Store, group: Group, markers: Sequence[Marker], opened: int
) -> Marker | None:
    if not store.exists(KEY):
        return None
    try:
        own = read_marker(store, KEY)
    except ShardError:
        return None  # ``verify`` reports it
    if own.first_step != opened or len(own.files) != group.size:
        return None
    return next((each for each in markers if each.checksum == own.previous), None)


def load_own(store: Store, tally: Tally, group: Group) -> bool:
    """Load this worker's sums; return whether they are what the marker lists."""
    try:
        file = read_marker(store, KEY).files[group.rank]
        tally.load_state(load(read_listed(store, file)))
    except (FileNotFoundError, ShardError, SafetensorError, KeyError, ValueError, RuntimeError):
        return False
    return True
