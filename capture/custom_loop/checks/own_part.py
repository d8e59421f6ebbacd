"""The part of the batch that belongs to one datum: in inputs, in outputs, and in their gradients.

Shapes: N datum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capture.custom_loop.checks.model_calls import ModelCall
from capture.custom_loop.packing.documents import Cut, Documents


class NotComparableError(Exception):
    """The pass of a datum alone has outputs that cannot be matched with those of the batch."""


@dataclass(frozen=True)
class OwnPart:
    """The part of the datum in one slot: a row, or a document in a row."""

    slot: int
    num_rows: int
    documents: Documents | None
    """None if rows are datums."""

    def ways_to_cut(self, calls: Sequence[ModelCall]) -> Iterator[Cut]:
        """Yield ways to cut the batch's inputs to the datum.

        An input whose first axis has as many entries as there are datums may still be something
        else, such as a mask [T, T]. Which inputs are cut is therefore tried out: all, all but one,
        or one.
        """
        if self.documents is not None:
            yield from self.documents.ways_to_cut(self.slot)
            return
        slot = self.slot
        inputs = {id(x): x for call in calls for x in call.inputs if x.shape[0] == self.num_rows}
        choices = [set(inputs)]
        if len(inputs) > 1:
            choices += [set(inputs) - {each} for each in inputs] + [{each} for each in inputs]
        for chosen in choices:
            yield lambda x, chosen=chosen: x[slot : slot + 1] if id(x) in chosen else x

    def of_delta(self, delta: Tensor, alone: torch.Size) -> Tensor:
        """Return the datum's part of a loss gradient at an output, of the shape ``alone``.

        Raises ``NotComparableError`` if the axis of datums is unknown.
        """
        if self.documents is not None:
            own = self.documents.of_output(delta, self.slot)
            if own is None or own.shape != alone:
                raise NotComparableError
            return own
        axis = datum_axis(delta.shape, alone, self.num_rows)
        if axis is None:
            raise NotComparableError
        return delta.unflatten(axis, (self.num_rows, alone[axis])).select(axis, self.slot)

    def masks(self, batch: Sequence[Tensor], alone: Sequence[Tensor]) -> dict[int, Tensor]:
        """Return by the number of an output which of its entries are the datum's, if known.

        ``batch``: outputs of the batch; ``alone``: of the datum alone. Masks are to be broadcast.
        """
        found = {}
        for number, (x, own) in enumerate(zip(batch, alone, strict=True)):
            if self.documents is not None:
                mask = self.documents.mask(x, self.slot)
            else:
                mask = mask_along(x, datum_axis(x.shape, own.shape, self.num_rows), self)
            if mask is not None:
                found[number] = mask
        return found


def mask_along(x: Tensor, axis: int | None, own_part: OwnPart) -> Tensor | None:
    """Return which entries along an axis of datums, each with as many, are those of one of them."""
    if axis is None:
        return None
    datum = torch.arange(x.shape[axis], device=x.device) // (x.shape[axis] // own_part.num_rows)
    return (datum == own_part.slot).view(-1, *(1,) * (x.dim() - 1 - axis))


def datum_axis(batch: torch.Size, alone: torch.Size, num_datums: int) -> int | None:
    """Return the axis in which a datum's own output is N times as short, if it is the only one."""
    if num_datums == 1 and batch == alone:
        return 0 if batch else None
    axes = [axis for axis, (n, one) in enumerate(zip(batch, alone, strict=False)) if n != one]
    if len(batch) != len(alone) or len(axes) != 1:
        return None
    return axes[0] if batch[axes[0]] == num_datums * alone[axes[0]] else None
