"""Apply a model to many items, in this process or on machines that hold a copy of the model.

A ``Work`` holds the model and everything else that all items share. Called with an item, it returns
a result of plain arrays. It can be pickled and moved to a device.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, Self, TypeVar

Item = TypeVar("Item", contravariant=True)
Done = TypeVar("Done", covariant=True)
ItemOf = TypeVar("ItemOf")
DoneOf = TypeVar("DoneOf")


class Work(Protocol[Item, Done]):
    """A function of one item, with the data that all items share."""

    def to(self, device: str) -> Self:
        """Return it with all tensors on a device; may modify this object."""
        ...

    def __call__(self, item: Item, /) -> Done: ...


class Sweep(Protocol):
    """Applies work to items and yields results in the order of the items."""

    def __call__(self, work: Work[ItemOf, DoneOf], items: Sequence[ItemOf]) -> Iterator[DoneOf]: ...


def in_turn(work: Work[ItemOf, DoneOf], items: Sequence[ItemOf]) -> Iterator[DoneOf]:
    """Apply work in this process, lazily, one item after the other."""
    return map(work, items)
