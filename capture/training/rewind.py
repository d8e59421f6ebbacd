"""Remove the last segments of a run, so that training continues from an earlier step.

A trainer that restarts from a checkpoint of its own takes steps again that the run may hold
already. They are removed first: the record then has one row for each step that made the weights.
"""

from capture.config.records import KINDS
from capture.errors import RunError
from capture.format.chain import read_segments, require_start
from capture.format.markers import segment_key
from capture.format.replay_markers import add_replayed_files, replay_key
from capture.store import Store, lease


def rewind(store: Store, step: int) -> None:
    """Remove all segments that end after ``step``; a segment must end there.

    Each segment's marker goes first, the last segment's before all others, so that a reader sees a
    shorter run and never half a segment. Raises ``RunError`` if there is no run, if no segment ends
    at the step, or if another process records the run.
    """
    start = require_start(store)
    segments = add_replayed_files(store, read_segments(store))
    ends = [start.end_step, *(marker.end_step for marker in segments)]
    if step not in ends:
        before = max((end for end in ends if end < step), default=0)
        problem = f"has no segment that ends at step {step}; the last one before ends at {before}"
        raise RunError(store.uri, problem, f"Continue from a checkpoint of step {before}")
    if ends[-1] == step:
        return
    with lease.hold_lease(store, lambda event: None) as held:
        for number in reversed(range(ends.index(step), len(segments))):
            for key in (*(replay_key(number, kind) for kind in KINDS), segment_key(number)):
                held.require()
                store.delete(key)
            for file in segments[number].files:
                store.delete(file.key)
