"""Divide the rows of a matrix parameters × steps into pieces that fit in memory.

Shapes: P entry of a parameter, S step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from capture.errors import ConfigError
from capture.gradients.layout import Layout

MAX_BYTES = 2**30
"""Memory of one piece's rows in float32; Gram matrices and replay come on top."""
MAX_STEPS = 10_000
"""Largest number of steps: their Gram matrix takes 0.8 GB in float64, its decomposition 2 GB."""


@dataclass(frozen=True)
class Part:
    """Consecutive entries of one unit, flat, within a piece."""

    unit: str
    first: int
    """First entry within the unit."""
    end: int

    @property
    def size(self) -> int:
        return self.end - self.first


Piece = tuple[Part, ...]


def pieces_of(layout: Layout, steps: int, max_bytes: int = MAX_BYTES) -> list[Piece]:
    """Return the pieces of a matrix of all units in the layout × ``steps``, in order.

    Raises ``ConfigError`` for more steps than one Gram matrix may have.
    """
    if steps > MAX_STEPS:
        problem = f"got {steps:,} steps, more than one Gram matrix takes ({MAX_STEPS:,})"
        raise ConfigError("spectrum.steps", problem, "Choose fewer: --every N, or --steps A:B")
    room = max(1, max_bytes // (4 * steps))
    found: list[Piece] = []
    open_piece: list[Part] = []
    for unit, size in zip(layout.names, layout.sizes, strict=True):
        first = 0
        while first < size:
            free = room - sum(part.size for part in open_piece)
            end = min(size, first + free)
            open_piece.append(Part(unit, first, end))
            first = end
            if end - open_piece[-1].first == free:
                found.append(tuple(open_piece))
                open_piece = []
    return [*found, tuple(open_piece)] if open_piece else found


def places(piece: Sequence[Part]) -> list[slice]:
    """Return where each part stands among the entries of its piece."""
    ends, found = 0, []
    for part in piece:
        found.append(slice(ends, ends + part.size))
        ends += part.size
    return found
