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


def read_window_marker(store: Store, markers: Mapping[str, Marker]) -> tuple[Marker | None, str]:
    """Return the marker, if there is a readable one, and its problem, if it has one.

    ``markers``: of the start and of all segments.
    """
    if not store.exists(KEY):
        return None, ""
    try:
        found = read_marker(store, KEY)
    except ShardError as error:
        return None, error.problem
    if found.previous not in {marker.checksum for marker in markers.values()}:
        return None, "is of another run or an older state. Delete it"
    if any(file.kind != KIND for file in found.files):
        return None, f"lists files that are not {KIND}"
    return found, ""
