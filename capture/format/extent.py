"""How much a run should hold, from its start: number of steps, segments and windows.

Markers say what a run holds. A run that has lost its last marker looks like a shorter run, so what
it should hold is read from its configuration and its corpus, which the start marker lists.
"""

from dataclasses import dataclass
from typing import Any

from capture.config.safe_yaml import read_yaml
from capture.errors import RunError, ShardError
from capture.format.markers import Marker, read_small, segment_key
from capture.store import Store, lease

RUN_YAML, RUN_YAML_BYTES = "run.yaml", 2**17
DATUMS = "corpus/datums.parquet"


@dataclass(frozen=True)
class Extent:
    """Sizes of the finished run."""

    num_steps: int
    batch: int
    segment_steps: int
    window_steps: int
    """Steps of a tally window."""

    def segment_of_window(self, window: int) -> int:
        """Return the segment in which a tally window ends."""
        end = min((window + 1) * self.window_steps, self.num_steps)
        return max(0, end - 1) // self.segment_steps


def extent_of(config: Any, start: Marker) -> Extent | None:
    """Return the extent of the run with these configuration values and this start marker.

    None for a custom training loop, whose length is not known, and for unusable values.
    """
    num_datums = next((file.rows for file in start.files if file.key == DATUMS), None)
    try:
        if config["run"].get("loop", "capture") != "capture" or num_datums is None:
            return None
        epochs, batch = config["training"]["epochs"], config["training"]["batch"]
        capture = config["capture"]
        in_epoch = num_datums // batch
        window = capture["tally"].get("window_steps") or in_epoch
        sizes = (epochs * in_epoch, batch, capture["segment_steps"], window)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None
    return Extent(*sizes) if all(type(size) is int and size > 0 for size in sizes) else None


def read_extent(store: Store, start: Marker) -> Extent | None:
    """Read the extent from ``run.yaml``; None where ``extent_of`` returns None."""
    try:
        values = read_yaml(read_small(store, RUN_YAML, RUN_YAML_BYTES).decode())
        return extent_of(values["config"], start)
    except (ShardError, ValueError, KeyError, TypeError):
        return None  # ``verify`` reports a damaged run.yaml


def is_being_captured(store: Store) -> bool:
    try:
        return bool(lease.running_capture(store))
    except RunError:
        return False  # ``verify`` reports a damaged lease


def shortfall(store: Store, segments: int, steps_done: int, extent: Extent | None) -> str:
    """Say in what way a run is shorter than it should be; empty if it is not, or is being made.

    ``segments``: the number of its segments that are committed.
    """
    if steps_done == 0 or (extent and steps_done >= extent.num_steps):
        return ""  # readers of a run without steps raise an error
    if is_being_captured(store):
        return ""
    if store.exists(f"steps/segment-{segments:06d}.parquet"):
        what = "was lost, or capture ended before it was written"
        return f"is shorter than it was: {segment_key(segments)} is missing. It {what}"
    if extent:
        held = f"holds {steps_done:,} of {extent.num_steps:,} steps"
        return f"{held}: capture was interrupted, or its last markers were lost"
    return ""
