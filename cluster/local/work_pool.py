"""Apply work to items in several processes of this machine, as a ``Sweep``."""

from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from analysis.jobs.sweep import DoneOf, ItemOf, Sweep, Work, in_turn
from capture.errors import RunError
from cluster.local.processes import process_pool


def in_processes(workers: int, where: str) -> Sweep:
    """Return a sweep that works on as many items at once; ``where`` names the run in errors.

    Results come in the order of the items. Raises ``RunError`` if a process was killed.
    """

    def sweep(work: Work[ItemOf, DoneOf], items: Sequence[ItemOf]) -> Iterator[DoneOf]:
        with process_pool(min(workers, len(items))) as pool:
            try:
                yield from pool.map(work, items)
            except BrokenProcessPool as error:
                problem = "a process that worked on it was killed, perhaps for lack of memory"
                remedy = "Run the command again, with fewer --workers"
                raise RunError(where, problem, remedy) from error

    return sweep if workers > 1 else in_turn
