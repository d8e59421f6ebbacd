"""Where a recording begins: at step 0, or behind the last committed step of its run."""

from typing import Any

from capture.custom_loop.steps import StepPosition
from capture.format.markers import Marker
from capture.shards import encoding as shards
from capture.store import Store


def first_position(store: Store, last: Marker) -> StepPosition:
    """Return the position of the next step, in the epoch of the last step that is stored.

    ``last``: marker of the last committed segment, or of the start of the run.
    """
    if not last.files_of("steps"):
        return StepPosition(last.end_step, 0, 0)
    row = last_row(store, last)
    return StepPosition(last.end_step, row["epoch"], row["batch"] + 1)


def last_row(store: Store, last: Marker) -> dict[str, Any]:
    """Return the row of a segment's last step in the table ``steps``."""
    file = last.files_of("steps")[0]
    rows = shards.decode(store.get(file.key), f"{store.uri}/{file.key}")
    return rows.slice(rows.num_rows - 1).to_pylist()[0]
