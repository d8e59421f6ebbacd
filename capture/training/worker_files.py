"""What each worker has stored of a segment, and the marker that lists the files of all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capture.engine.split import UNCHECKED
from capture.format.markers import MAX_REASONS, File, Marker
from capture.training.segments import OpenSegment


@dataclass(frozen=True)
class WorkerFiles:
    """The files of a segment that one worker has stored, and its part of the marker's numbers."""

    files: list[File]
    retries: int
    waited_seconds: float
    pending_bytes: int
    unchecked: dict[str, int]
    """What this worker could not check → how often; see ``Marker``."""


def worker_files(values: dict[str, Any]) -> WorkerFiles:
    return WorkerFiles(**{**values, "files": [File(**file) for file in values["files"]]})


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
