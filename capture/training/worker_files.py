"""What each worker has stored of a segment, and the marker that lists the files of all."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from capture.engine.split import UNCHECKED
from capture.errors import StoreError
from capture.format.markers import MAX_REASONS, File, Marker
from capture.process_group import Group
from capture.training.segments import OpenSegment

FAILURE = "failure"
"""Key under which a worker says why it has stored nothing."""


@dataclass(frozen=True)
class WorkerFiles:
    """The files of a segment that one worker has stored, and its part of the marker's numbers."""

    files: list[File]
    retries: int
    waited_seconds: float
    pending_bytes: int
    unchecked: dict[str, int]
    """What this worker could not check → how often; see ``Marker``."""


def gather_files(writers: Group, own: WorkerFiles) -> list[WorkerFiles]:
    """Return what every worker has stored, by rank; raises ``StoreError`` if one has failed."""
    found = writers.all_gather_object(asdict(own))
    for rank, values in enumerate(found):
        if FAILURE in values:
            raise StoreError(f"worker {rank}", f"could not store its part: {values[FAILURE]}")
    return [WorkerFiles(**{**own, "files": [File(**f) for f in own["files"]]}) for own in found]


def tell_failure(writers: Group, failure: Exception, seconds: float) -> None:
    """Tell the workers that wait in ``gather_files`` that this one has failed; waits so long."""
    if writers.size == 1:
        return

    def tell() -> None:
        with suppress(RuntimeError):  # they have ended
            writers.all_gather_object({FAILURE: str(failure).rstrip(".")})

    thread = threading.Thread(target=tell, name="failure", daemon=True)
    thread.start()
    thread.join(seconds)


def marker_of(done: OpenSegment, workers: list[WorkerFiles]) -> Marker:
    """Return the marker of a segment whose files these workers have stored, in order of rank."""
    return Marker(
        done.first_step,
        done.end_step,
        tuple(file for worker in workers for file in worker.files),
        retries=sum(worker.retries for worker in workers),
        waited_seconds=round(max(worker.waited_seconds for worker in workers), 3),
        pending_bytes=sum(worker.pending_bytes for worker in workers),
        unchecked=joint_reasons([worker.unchecked for worker in workers]),
    )


def joint_reasons(found: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return what all workers could not check; they take each step together, and rows apart."""
    reasons = list(dict.fromkeys(reason for own in found for reason in own))[:MAX_REASONS]
    counts = {reason: [own.get(reason, 0) for own in found] for reason in reasons}
    return {
        reason: max(each) if reason.startswith(UNCHECKED) else sum(each)
        for reason, each in counts.items()
    }
