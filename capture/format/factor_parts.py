"""Cut the factors of a segment into tables of a few megabytes, each written as soon as it is full.

The factors of a whole segment would not fit into memory: 100 steps of the study's model take 1.7
GB. The name of a table contains its first step and slot, so that a reader finds the table of a
datum.
"""

import re
from dataclasses import dataclass, replace

from capture.errors import ConfigError
from capture.format.factor_layout import FactorLayout
from capture.format.factor_tables import FactorRows, encode
from capture.format.markers import max_files

PART_BYTES = 24 * 2**20
"""Largest size of a table before compression. A table always holds at least one datum."""
PART_ROWS = 256
"""Most rows of a table, so that its footer stays small."""
OTHER_FILES = 500
"""Room in a marker for files that are no factors: tallies, outliers of workers, a checkpoint."""
SETTING = "capture.segment_steps"
NAME = re.compile(r"factors/segment-\d{6,9}-w\d{2,}-(\d{6,10})-(\d{5})\.parquet")


@dataclass
class FactorPart:
    """One table of factors: rows of one layout, ascending by step and slot."""

    layout: FactorLayout
    pieces: list[FactorRows]

    @property
    def num_rows(self) -> int:
        return sum(len(piece.datum_N) for piece in self.pieces)

    @property
    def num_bytes(self) -> int:
        """Bytes held in memory."""
        arrays = [array for piece in self.pieces for array in piece.array_NS.values()]
        return sum(array.nbytes for array in arrays)

    def key(self, segment: int, worker: str) -> str:
        """Return the key of the table, which contains its first step and slot."""
        first = self.pieces[0]
        begins = f"{first.step:06d}-{int(first.slot_N[0]):05d}"
        return f"factors/segment-{segment:06d}-{worker}-{begins}.parquet"

    def encode(self) -> tuple[memoryview, int]:
        """Return the bytes of the table and its number of rows."""
        return encode(self.layout, self.pieces)


def first_row_of(key: str) -> tuple[int, int]:
    """Parse step and slot of a table's first row from its key; (0, 0) for any other key."""
    found = NAME.fullmatch(key)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def max_rows(row_bytes: int) -> int:
    """Return how many rows a table can hold if one datum takes ``row_bytes``."""
    return max(1, min(PART_ROWS, PART_BYTES // max(1, row_bytes)))


def rows_of_parts(row_bytes: int, *, steps: int, datums: int) -> list[int]:
    """Return the rows of each table that ``FactorParts`` makes of a segment.

    ``datums``: the number of datums per step.
    """
    most = max_rows(row_bytes)
    if datums > most:
        return [min(most, datums - first) for first in range(0, datums, most)] * steps
    together = most // datums
    return [datums * min(together, steps - first) for first in range(0, steps, together)]


def require_few_tables(
    layout: FactorLayout, steps: int, datums: int, *, workers: int = 1, where: str = SETTING
) -> None:
    """Raise ``ConfigError`` if a segment's marker could not list all tables of factors.

    ``datums``: the number of datums per step and worker; ``where`` names the cause in the message.
    """
    tables = workers * len(rows_of_parts(layout.row_bytes, steps=steps, datums=datums))
    most = max_files() - OTHER_FILES
    if tables > most:
        problem = f"a segment would have {tables:,} tables of factors; a marker lists {most:,}"
        fitting = f"Set {SETTING} to {max(1, steps * most // tables)} or less"
        raise ConfigError(where, problem, f"{fitting}, or capture fewer units")


class FactorParts:
    """Collect steps into parts: whole steps while they fit; a step that is too large is cut by
    slots."""

    def __init__(self) -> None:
        self.open: FactorPart | None = None

    def add(self, layout: FactorLayout, rows: FactorRows) -> list[FactorPart]:
        """Add a step. Returns the parts that are complete now."""
        most = max_rows(layout.row_bytes)
        closed = []
        for piece in split_rows(rows, most):
            part = self.open
            if not part or part.layout != layout or part.num_rows + len(piece.datum_N) > most:
                closed += self.close()
                part = self.open = FactorPart(layout, [])
            part.pieces.append(piece)
        return closed

    def close(self) -> list[FactorPart]:
        """Close the open part at the end of a segment and return it, if there is one."""
        closed, self.open = self.open, None
        return [closed] if closed else []


def split_rows(rows: FactorRows, most: int) -> list[FactorRows]:
    """Split rows into pieces of at most ``most`` rows."""
    pieces = []
    for start in range(0, len(rows.datum_N), most):
        span = slice(start, start + most)
        arrays = {name: array[span] for name, array in rows.array_NS.items()}
        pieces.append(
            replace(rows, slot_N=rows.slot_N[span], datum_N=rows.datum_N[span], array_NS=arrays)
        )
    return pieces
