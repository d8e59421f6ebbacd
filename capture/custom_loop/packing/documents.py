"""Find each document of a packed batch, and what belongs to it in tensors of the whole batch.

The tape sees rows. The factors of a row are sums over its positions, so those of a document are the
factors at its positions. ``Documents`` takes them out, and positions then count in the document.

Shapes: R row of the batch, W width of a row, N datum (a document), L position in the longest
document, E entry of a row, F features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from capture.errors import UnitError
from capture.gradients.factors import Factor, Factors
from capture.gradients.memo import Memo

Cut = Callable[[Tensor], Tensor]
"""Takes an input of the batch, returns that of one datum."""


@dataclass(frozen=True, eq=False)
class Documents:
    """The row and the positions of each document of a batch, by slot."""

    num_rows: int
    width: int
    """Positions of each row."""
    row_N: np.ndarray
    start_N: np.ndarray
    stop_N: np.ndarray

    def __len__(self) -> int:
        return len(self.row_N)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Documents) and self.places == other.places

    __hash__ = None  # pyright: ignore

    @property
    def places(self) -> tuple[object, ...]:
        ends = (x.tolist() for x in (self.row_N, self.start_N, self.stop_N))
        return self.num_rows, self.width, *ends

    @property
    def boundaries(self) -> list[int]:
        """First positions of all documents and the end of the last, over all rows (cu_seqlens)."""
        starts = self.row_N * self.width + self.start_N
        return [*starts.tolist(), int(self.row_N[-1] * self.width + self.stop_N[-1])]

    # --- factors ----------------------------------------------------------------------------------

    def split(self, factors: Factors) -> Factors:
        """Return the factors of documents [N, L, F] from those of rows [R, E, F].

        Raises ``UnitError`` for a unit that is not used once at each position of a row.
        """
        # Units that share an input or δ keep sharing it.
        taken = cache(lambda per_position: Memo(partial(self.take, per_position=per_position)))
        return {
            name: [use.map_tensors(taken(self.entries_per_position(name, use))) for use in uses]
            for name, uses in factors.items()
        }

    def take(self, x_REF: Tensor, per_position: int = 1) -> Tensor:
        """Return the entries of each document, padded with 0 to the length of the longest."""
        lengths_N = self.stop_N - self.start_N
        rest = x_REF.shape[2:]
        x_RWF = self.whole_rows(x_REF, per_position).unflatten(1, (self.width, per_position))
        out_NLF = x_REF.new_zeros(len(self), int(lengths_N.max()), per_position, *rest)
        places = zip(self.row_N, self.start_N, self.stop_N, strict=True)
        for own_LF, (row, start, stop) in zip(out_NLF, places, strict=True):
            own_LF[: stop - start] = x_RWF[row, start:stop]
        return out_NLF.flatten(1, 2)

    def of_slot(self, name: str, factor: Factor, slot: int) -> Factor:
        """Return the factor of one document, [1, its entries, F], from that of the rows."""
        each = self.entries_per_position(name, factor)
        row, start, stop = self.row_N[slot], self.start_N[slot], self.stop_N[slot]
        return factor.map_tensors(
            lambda x: self.whole_rows(x, each)[row : row + 1, start * each : stop * each]
        )

    def whole_rows(self, x_REF: Tensor, per_position: int) -> Tensor:
        """Return entries of all positions, with 0 for a last one that the unit was not used at."""
        missing = self.width * per_position - x_REF.shape[1]
        return F.pad(x_REF, (0, 0) * (x_REF.dim() - 2) + (0, missing)) if missing else x_REF

    def entries_per_position(self, unit: str, factor: Factor) -> int:
        """Return how many entries of a factor belong to a position.

        The last position may lack, as in a head that computes the loss from ``x[:, :-1]``. (If the
        first lacks, the check of the split finds other gradients.) Raises ``UnitError`` if more
        lack, so that entries cannot be told apart.
        """
        entries, each = factor.delta_NTO.shape[1], factor.per_position
        if entries in (each * self.width, each * (self.width - 1)):
            return each
        problem = (
            f"is used {entries} times in each row of {self.width} positions, so documents in the "
            "row cannot be told apart"
        )
        remedy = 'Leave it out: units=["!PATTERN"], or give one id for each row'
        raise UnitError(unit, problem, remedy)

    # --- inputs and outputs of the model ----------------------------------------------------------

    def ways_to_cut(self, slot: int) -> Iterator[Cut]:
        """Yield ways to cut the batch's inputs to one document.

        A tensor [R, W, W] may be a mask, or states of as many features as there are positions.
        """
        for is_mask in (True, False):
            yield partial(self.cut, slot=slot, is_mask=is_mask)

    def cut(self, x: Tensor, slot: int, *, is_mask: bool) -> Tensor:
        """Return the part of an input that belongs to a document; other inputs stay whole."""
        row, own, width = int(self.row_N[slot]), self.positions(slot), self.width
        length = own.stop - own.start
        if x.dim() == 1 and not x.is_floating_point() and x.tolist() == self.boundaries:
            return torch.tensor([0, length]).to(x)
        if x.dim() > 1 and x.shape[-2:] == (width, width) and (is_mask or x.dim() == 4):
            square = x[..., own, own]
            return square[row : row + 1] if x.dim() > 2 and len(x) == self.num_rows else square
        found = self.of_output(x, slot)
        return x if found is None else found

    def of_output(self, x: Tensor, slot: int) -> Tensor | None:
        """Return a document's part of [R, W, …], [1, W, …] or [R · W, …]; None for other shapes.

        Where the last position lacks, as in log-probabilities of the next tokens [R, W - 1], it
        lacks in each document: what it would predict is no part of the document.
        """
        row, own = int(self.row_N[slot]), self.positions(slot)
        if x.dim() > 1 and len(x) in (1, self.num_rows) and self.width - x.shape[1] in (0, 1):
            return x[min(row, len(x) - 1)][None, own.start : own.stop - self.width + x.shape[1]]
        if x.dim() and len(x) == self.num_rows * self.width:
            return x[row * self.width + own.start : row * self.width + own.stop]
        return None

    def positions(self, slot: int) -> slice:
        return slice(int(self.start_N[slot]), int(self.stop_N[slot]))

    def mask(self, x: Tensor, slot: int) -> Tensor | None:
        """Return which entries of an output belong to a document, to be broadcast; None if unknown.

        A number, such as a loss, belongs to every document.
        """
        if not x.dim():
            return torch.ones_like(x, dtype=torch.bool)
        mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        own = self.of_output(mask, slot)
        if own is None:
            return None
        own.fill_(True)
        return mask.view(*mask.shape, *(1,) * (x.dim() - mask.dim()))
