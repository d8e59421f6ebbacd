"""Work that takes a model, over many items: here in turn, or on machines that hold the model.

A *work* is the model and whatever else all items share; called with an item it gives a result of
plain arrays. It can be sent to another machine and moved to a device there.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, Self, TypeVar

Item = TypeVar("Item", contravariant=True)
Done = TypeVar("Done", covariant=True)
ItemOf = TypeVar("ItemOf")
DoneOf = TypeVar("DoneOf")


class Work(Protocol[Item, Done]):
    def to(self, device: str) -> Self:
        """The same with all tensors on a device; may change this one."""
        ...

    def __call__(self, item: Item, /) -> Done: ...


class Sweep(Protocol):
    """Carries work out over items; results come in the order of the items."""

    def __call__(self, work: Work[ItemOf, DoneOf], items: Sequence[ItemOf]) -> Iterator[DoneOf]: ...


def in_turn(work: Work[ItemOf, DoneOf], items: Sequence[ItemOf]) -> Iterator[DoneOf]:
    """In this process, one after the other, each when its result is asked for."""
    return map(work, items)
