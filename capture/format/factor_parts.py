"""Factors on their way to the store: cut into tables of a few megabytes as they come.

A segment's factors would not fit into memory (100 steps of the study's model have 1.7 GB), so they
are not kept until it ends: as soon as a table is full it is closed and can be written. A reader
finds a datum's by the tables' names, which say where each begins.
"""

import re
from dataclasses import dataclass, replace

from capture.format.factor_layout import FactorLayout
from capture.format.factor_tables import Rows, encode

PART_BYTES = 24 * 2**20
"""A table is closed before it holds more than this, not yet packed; one datum always fits."""
PART_ROWS = 256
"""Nor does it hold more rows, so that its footer stays small."""
NAME = re.compile(r"factors/segment-\d{6,9}-w\d{2,}-(\d{6,10})-(\d{5})\.parquet")


@dataclass
class Part:
    """A table of factors: rows of one layout, ascending by step and slot."""

    layout: FactorLayout
    pieces: list[Rows]

    @property
    def num_rows(self) -> int:
        return sum(len(piece.datum_N) for piece in self.pieces)

    @property
    def num_bytes(self) -> int:
        """Held in memory."""
        arrays = [array for piece in self.pieces for array in piece.array_NS.values()]
        return sum(array.nbytes for array in arrays)

    def key(self, segment: int, worker: str) -> str:
        """Where it goes: named after its first step and slot."""
        first = self.pieces[0]
        begins = f"{first.step:06d}-{int(first.slot_N[0]):05d}"
        return f"factors/segment-{segment:06d}-{worker}-{begins}.parquet"

    def encode(self) -> tuple[memoryview, int]:
        """The bytes of the table and its rows."""
        return encode(self.layout, self.pieces)


def begins_at(key: str) -> tuple[int, int]:
    """Step and slot of a table's first row by its name; (0, 0) for a foreign name."""
    found = NAME.fullmatch(key)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def most_rows(row_bytes: int) -> int:
    """That a table holds, where one datum's numbers are so large."""
    return max(1, min(PART_ROWS, PART_BYTES // max(1, row_bytes)))


def rows_of_parts(row_bytes: int, *, steps: int, datums: int) -> list[int]:
    """Rows of the tables that ``FactorParts`` makes of a segment, of so many datums a step."""
    most = most_rows(row_bytes)
    if datums > most:
        return [min(most, datums - first) for first in range(0, datums, most)] * steps
    together = most // datums
    return [datums * min(together, steps - first) for first in range(0, steps, together)]


class FactorParts:
    """Cuts steps into parts: whole steps while they fit, a step that is too large by slots."""

    def __init__(self) -> None:
        self.open: Part | None = None

    def add(self, layout: FactorLayout, rows: Rows) -> list[Part]:
        """Add a step; returns the parts that this closes."""
        most = most_rows(layout.row_bytes)
        closed = []
        for piece in cut(rows, most):
            part = self.open
            if not part or part.layout != layout or part.num_rows + len(piece.datum_N) > most:
                closed += self.close()
                part = self.open = Part(layout, [])
            part.pieces.append(piece)
        return closed

    def close(self) -> list[Part]:
        """The open part, if there is one, which ends with its segment."""
        closed, self.open = self.open, None
        return [closed] if closed else []


def cut(rows: Rows, most: int) -> list[Rows]:
    """The rows in pieces of at most so many."""
    pieces = []
    for start in range(0, len(rows.datum_N), most):
        place = slice(start, start + most)
        arrays = {name: array[place] for name, array in rows.array_NS.items()}
        pieces.append(
            replace(rows, slot_N=rows.slot_N[place], datum_N=rows.datum_N[place], array_NS=arrays)
        )
    return pieces
