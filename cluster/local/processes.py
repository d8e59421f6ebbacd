"""Segments replayed by several processes of this machine or of a cluster, each by one of them.

Processes and not threads: torch's number of threads, on which the bits depend, is a setting of the
process. They are started anew, not forked, since torch's threads do not survive a fork.
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
from capture.replay.segments import Past, Replayed, replay_segment

Report = Callable[[int, int], None]
"""Told after every segment: how many are done, how many there are."""


def replay_segments(
    past: Past,
    segments: Sequence[int],
    kinds: Collection[RecordKind],
    report: Report,
    *,
    workers: int,
    sweep: Sweep | None = None,
) -> list[Replayed]:
    """What became of each segment, in order; ``sweep``: by a cluster, whatever ``workers`` says.

    What one raises ends the replay: others that are under way come to their end, the rest is left.
    """
    found: list[Replayed] = []
    work = Replaying(past, kinds)
    if sweep:
        done = sweep(work, segments)
    elif min(workers, len(segments)) <= 1:
        done = map(work, segments)
    else:
        done = by_processes(past, segments, kinds, workers)
    for replayed in done:
        found.append(replayed)
        report(len(found), len(segments))
    return sorted(found, key=lambda replayed: replayed.segment)


@dataclass(frozen=True)
class Replaying:
    """What is done to each segment."""

    past: Past
    kinds: Collection[RecordKind]

    def to(self, device: str) -> "Replaying":
        """The run's own configuration says on what it computes."""
        return self

    def __call__(self, segment: int, /) -> Replayed:
        return replay_segment(self.past, segment, self.kinds)


def by_processes(
    past: Past, segments: Sequence[int], kinds: Collection[RecordKind], workers: int
) -> Iterator[Replayed]:
    """As they are done; raises ``RunError`` for a process that was killed."""
    with pool_of(min(workers, len(segments))) as pool:
        work = [pool.submit(replay_segment, past, segment, kinds) for segment in segments]
        try:
            for future in as_completed(work):
                yield future.result()
        except BrokenProcessPool as error:
            problem = "a process that replayed it was killed, perhaps for want of memory"
            remedy = "Run the command again, with fewer --workers"
            raise RunError(past.store.uri, problem, remedy) from error


@contextmanager
def pool_of(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with their work; at once where this one is told to stop."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=leave_signals)
    try:
        yield pool
    except KeyboardInterrupt:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def leave_signals() -> None:
    """Ctrl-C reaches every process of a terminal; the one that was asked ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
