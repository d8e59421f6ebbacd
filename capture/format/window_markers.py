"""The marker of the stored sums of an open tally window: see ``capture.training.open_window``.

Readers of a run do not use these sums; only a capture that resumes does.
"""

from collections.abc import Mapping

from capture.errors import ShardError
from capture.format.markers import Marker, read_marker
from capture.store import Store

KEY = "segments/open-window.json"
FOLDER = "checkpoints"
KIND = "open_window"


def window_file(step: int, rank: int) -> str:
    """Return the key of a worker's sums after ``step`` steps."""
    return f"{FOLDER}/window-{step:06d}-w{rank:02d}.safetensors"


def read_window(store: Store) -> tuple[Marker | None, str]:
    """Return the marker, if there is a readable one, and its problem, if it cannot be read."""
    if not store.exists(KEY):
        return None, ""
    try:
        return read_marker(store, KEY), ""
    except ShardError as error:
        return None, error.problem


def window_problem(window: Marker | None, markers: Mapping[str, Marker]) -> str:
    """Say why the marker cannot belong to this run; empty if it can, or if there is none.

    ``markers``: of the start and of all segments. Read them after ``window``: a running capture
    commits the segment first.
    """
    if window is None:
        return ""
    if window.previous not in {marker.checksum for marker in markers.values()}:
        return "is of another run or an older state. Delete it"
    if any(file.kind != KIND for file in window.files):
        return f"lists files that are not {KIND}"
    return ""
