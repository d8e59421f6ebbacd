"""Keep the processes that record one loop in step: an error of one ends the recording on all.

Every rank carries out its own part of a step by ``attempt``, which keeps an error instead of
raising it. ``agree`` then exchanges a few values, at the same points of the loop on every rank. If
a rank has kept an error, ``agree`` raises on all of them: the error itself on the rank that made
it, and a ``RunError`` that names this rank and repeats the error on the others. A rank that leaves
the loop otherwise (an error of the user's own code) sends its reason to the next ``agree``.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from capture.errors import CaptureError, RunError
from capture.process_group import (
    SINGLE_PROCESS,
    DistributedGroup,
    Group,
    gradient_timeout,
)

LOG = logging.getLogger(__name__)
T = TypeVar("T")
Values = dict[str, Any]
FAREWELL_SECONDS = 5.0
"""How long a rank that leaves waits for the others to learn why; they may be in a backward pass."""
WAITING_SECONDS = 10.0
"""How long a rank whose loop has ended waits for the others before it says so."""
MOST_CHARACTERS = 1000
"""Length at which the text of another rank's error is cut."""
EQUAL_STEPS = "All ranks must take equally many steps: use a DistributedSampler, or drop_last=True"
ENDED = "Nothing of the open segment is stored; start all processes again with resume=True"


class Ranks:
    """The processes that record a loop together, seen from one of them.

    Attributes:
        group: for tensors of the size of the gradients; all ranks must call it in the same order.
    """

    def __init__(self, group: Group = SINGLE_PROCESS, exchange: Group = SINGLE_PROCESS) -> None:
        """``exchange``: the same processes, with a communicator of their own for ``agree``."""
        self.group = group
        self.exchange = exchange
        self.error: Exception | None = None
        """An error of this rank that the others do not know yet."""
        self.has_left = False
        """Whether this rank takes part in no further ``agree``."""

    @classmethod
    def of_processes(
        cls, process_group: dist.ProcessGroup, device: torch.device, patience_seconds: float
    ) -> "Ranks":
        """Return the ranks of torch's processes; all of them must call this at the same point.

        ``patience_seconds``: how long a rank may wait for its store, besides for the others.
        """
        timeout: timedelta = gradient_timeout(patience_seconds)
        own = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(own, dist.ProcessGroup)
        exchange = DistributedGroup(torch.device("cpu"), own)
        return cls(DistributedGroup(device, process_group), exchange)

    @property
    def rank(self) -> int:
        return self.group.rank

    @property
    def size(self) -> int:
        return self.group.size

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Return the result of ``work``; keep its error for ``agree`` if there are other ranks.

        With a single process, errors are raised at once.
        """
        if self.size == 1:
            return work()
        if self.error is not None:
            return None
        try:
            return work()
        except Exception as error:
            self.error = error
            return None

    def agree(self, where: str, values: Mapping[str, Any] | None = None) -> list[Values]:
        """Return every rank's values, which must be JSON, by rank.

        Raises this rank's own error of ``attempt``, or ``RunError`` if another rank has failed, has
        left, or is not at the same point, ``where``, of its loop.
        """
        if self.size == 1:
            return [dict(values or {})]
        found = self.exchanged(where, {"where": where, "error": described(self.error)}, values)
        failed = [rank for rank, own in enumerate(found) if own["error"]]
        if failed:
            self.has_left = True
            if self.error is not None:
                raise self.error
            own = found[failed[0]]
            problem = f"stopped at {own['where']}: {own['error']}"
            raise RunError(f"rank {failed[0]}", problem, ENDED)
        for rank, own in enumerate(found):
            if own["where"] != found[0]["where"]:
                self.has_left = True
                problem = f"is at {own['where']}, rank 0 at {found[0]['where']}"
                raise RunError(f"rank {rank}", problem, EQUAL_STEPS)
        return found

    def exchanged(
        self, where: str, state: Values, values: Mapping[str, Any] | None
    ) -> list[Values]:
        """Return every rank's values; raises ``RunError`` if a rank does not answer."""
        try:
            return self.exchange.all_gather_object({**(values or {}), **state})
        except RuntimeError as error:
            self.has_left = True
            if self.error is not None:
                raise self.error from error
            lost = "another rank has ended or does not answer"
            problem = f"{lost} at {where} ({first_sentence(error)})"
            raise RunError(f"rank {self.rank}", problem, ENDED) from error

    def agree_on_success(self, where: str, total_P: Tensor) -> None:
        """Replace a tensor by its sum over ranks, unless a rank has failed; see ``agree``."""
        if self.size == 1:
            return
        failed = total_P.new_tensor([float(self.error is not None)])
        try:
            self.group.all_reduce([total_P, failed])
        except RuntimeError as error:
            self.error = self.error or error
        if failed.item() or self.error is not None:
            self.agree(where)

    @contextmanager
    def waiting_at_end(self) -> Iterator[None]:
        """Log a warning if the block, in which this rank waits for the others, takes long.

        The others may wait for this rank as well, in a backward pass that needs its gradients.
        """
        text = "rank %d has ended its loop, and waits for other ranks, which are still training. %s"
        timer = threading.Timer(WAITING_SECONDS, LOG.warning, (text, self.rank, EQUAL_STEPS))
        timer.daemon = True
        if self.size > 1:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def leave(self, error: BaseException) -> None:
        """Tell the others, at their next ``agree``, why this rank has left the loop.

        Waits for them for up to ``FAREWELL_SECONDS``.
        """
        if self.size == 1 or self.has_left:
            return
        self.has_left = True
        state = {"where": "its loop", "error": described(error)}
        # The others may be in a backward pass that waits for this rank, so this must not wait.
        thread = threading.Thread(target=self.say, args=(state,), name="farewell", daemon=True)
        thread.start()
        thread.join(FAREWELL_SECONDS if isinstance(error, Exception) else 0.0)

    def say(self, state: Values) -> None:
        try:
            self.exchange.all_gather_object(state)
        except RuntimeError:
            return  # the others have ended too

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        """Wait until all ranks have stored their part, or say why this rank has not."""
        if error is not None:
            self.leave(error)
        elif not self.has_left:
            self.agree("the end of the recording")
        return False


def described(error: BaseException | None) -> str:
    """Return the text of an error, with its class if it is not one of ours; "" for None."""
    if error is None:
        return ""
    text = str(error) if isinstance(error, CaptureError) else f"{type(error).__name__}: {error}"
    return text[:MOST_CHARACTERS].rstrip(". \n")


def first_sentence(error: BaseException) -> str:
    """Return the beginning of an error of torch, without the place in its source."""
    text = str(error).partition("] ")[2] or str(error)
    return text.strip().splitlines()[0].partition(". ")[0][:200]
