"""Replay segments in several processes of this machine, or on a cluster.

Threads would not do: torch's number of threads, which the order of sums depends on, is a setting of
the process. Processes are spawned, not forked, because torch's threads do not survive a fork.
"""

import multiprocessing
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

from analysis.jobs.sweep import Sweep
from capture.config.records import RecordKind
from capture.errors import RunError
from capture.replay.segments import ReplayableRun, ReplayResult, replay_segment

Report = Callable[[int, int], None]
"""Called after every segment with the number done and the number in all."""


def replay_segments(
    past: ReplayableRun,
    segments: Sequence[int],
    kinds: Collection[RecordKind],
    report: Report,
    *,
    workers: int,
    sweep: Sweep | None = None,
) -> list[ReplayResult]:
    """Replay segments and return the results in order of the segments.

    With ``sweep`` a cluster does the work and ``workers`` is ignored. An error in one segment ends
    the replay: segments in progress are finished, the others are not started.
    """
    found: list[ReplayResult] = []
    work = SegmentReplay(past, kinds)
    if sweep:
        done = sweep(work, segments)
    elif min(workers, len(segments)) <= 1:
        done = map(work, segments)
    else:
        done = replay_in_processes(past, segments, kinds, workers)
    for replayed in done:
        found.append(replayed)
        report(len(found), len(segments))
    return sorted(found, key=lambda replayed: replayed.segment)


@dataclass(frozen=True)
class SegmentReplay:
    """The work on each segment, as ``Sweep`` takes it."""

    past: ReplayableRun
    kinds: Collection[RecordKind]

    def to(self, device: str) -> "SegmentReplay":
        """Ignores the device: the run's configuration chooses it."""
        return self

    def __call__(self, segment: int, /) -> ReplayResult:
        return replay_segment(self.past, segment, self.kinds)


def replay_in_processes(
    past: ReplayableRun, segments: Sequence[int], kinds: Collection[RecordKind], workers: int
) -> Iterator[ReplayResult]:
    """Yield results as they finish; raises ``RunError`` if a process was killed."""
    with process_pool(min(workers, len(segments))) as pool:
        work = [pool.submit(replay_segment, past, segment, kinds) for segment in segments]
        try:
            for future in as_completed(work):
                yield future.result()
        except BrokenProcessPool as error:
            problem = "a process that replayed it was killed, perhaps for lack of memory"
            remedy = "Run the command again, with fewer --workers"
            raise RunError(past.store.uri, problem, remedy) from error


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes; Ctrl-C in this process ends them at once."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=reset_signals)
    try:
        yield pool
    except KeyboardInterrupt:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def reset_signals() -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal; the parent ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
