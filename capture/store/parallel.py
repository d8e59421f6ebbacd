"""Several requests to a store at a time, with results in order."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Call(threading.Thread, Generic[Result]):
    """One call on a thread of its own, and what came of it.

    A daemon: a request that hangs in the network must not keep the process from ending.
    """

    def __init__(self, function: Callable[[Any], Result], item: object) -> None:
        super().__init__(daemon=True)
        self.function, self.item = function, item
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self.function(self.item)
        except BaseException as error:  # raised again where the result is waited for
            self.error = error

    def result(self) -> Result:
        """Wait for the call; return its result or raise its error."""
        self.join()
        if self.error is not None:
            raise self.error
        return self.value


def map_in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], at_once: int
) -> Iterator[Result]:
    """Yield the result for each item in order, with up to ``at_once`` calls under way.

    Raises the error of the first item that fails, as ``map`` does, when no call is under way any
    more. With 1 the calls are made on this thread.
    """
    if at_once == 1:
        yield from map(function, items)
        return
    rest = iter(items)
    calls = deque(Call(function, item) for item in islice(rest, at_once))
    try:
        while calls:
            result = calls.popleft().result()
            calls.extend(Call(function, item) for item in islice(rest, 1))
            yield result
    except Exception:
        for call in calls:
            call.join()
        raise
