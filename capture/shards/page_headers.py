"""Read the page headers of a Parquet column chunk without decoding the pages.

A page header states how much memory its data needs, and a decoder believes it: a few hundred bytes
can ask for gigabytes. So the headers are read first and compared with the footer, whose claims are
bounded as a whole. A header is a structure of Thrift's compact protocol: for each field one byte
with the distance to the field's number (high half) and its type (low half), then the value; a zero
byte ends the structure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 8
"""Maximum nesting of structures; a real page header has two levels."""
MAX_HEADER_BYTES = 2**20

DATA_PAGE, DICTIONARY_PAGE = 0, 2
"""Page types. We write no others, so others are refused."""


@dataclass(frozen=True)
class ParquetPage:
    """The header of one page; sizes in bytes."""

    kind: int
    header_bytes: int
    uncompressed_bytes: int
    compressed_bytes: int
    num_values: int
    encoding: int


def pages_of(chunk: bytes) -> Iterator[ParquetPage]:
    """Yield the pages of a column chunk in order; raises ``ValueError`` for an invalid header."""
    start = 0
    while start < len(chunk):
        page = read_page(chunk, start)
        start += page.header_bytes + page.compressed_bytes
        if start > len(chunk):
            raise ValueError("a page ends beyond its chunk")
        yield page


def read_page(chunk: bytes, start: int) -> ParquetPage:
    header = CompactReader(chunk, start)
    try:
        fields = header.struct(MAX_DEPTH)
        kind = fields[1]
        # Field numbers of parquet.thrift: 1 type, 2 and 3 sizes, 5 and 7 the header of that type,
        # in which 1 is the number of values and 2 the encoding.
        inner = fields[{DATA_PAGE: 5, DICTIONARY_PAGE: 7}[kind]]
        page = ParquetPage(kind, header.position - start, fields[2], fields[3], inner[1], inner[2])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("a page header is invalid") from error
    sizes = (page.uncompressed_bytes, page.compressed_bytes, page.num_values, page.encoding)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("a page has an impossible size")
    return page


class CompactReader:
    """A reader of Thrift's compact protocol, from a position in ``data`` on."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position
        self.end = min(len(data), position + MAX_HEADER_BYTES)

    def struct(self, depth: int) -> dict[int, Any]:
        """Return values by field number. Nested structures become dictionaries, text None.

        Raises ``ValueError`` for lists and other types, which page headers do not have.
        """
        if not depth:
            raise ValueError("a page header is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while kind := self.byte():
            step = kind >> 4
            number = number + step if step else self.integer()
            fields[number] = self.value(kind & 15, depth - 1)
        return fields

    def value(self, kind: int, depth: int) -> Any:
        match kind:
            case 1 | 2:
                return kind == 1
            case 3:
                return self.byte()
            case 4 | 5 | 6:
                return self.integer()
            case 8:
                length = self.varint()
                self.position += length
                return None
            case 12:
                return self.struct(depth)
        raise ValueError(f"a page header has a field of type {kind}")

    def byte(self) -> int:
        if not 0 <= self.position < self.end:
            raise ValueError("a page header is cut off")
        self.position += 1
        return self.data[self.position - 1]

    def varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("a page header has an endless number")

    def integer(self) -> int:
        number = self.varint()
        return number >> 1 ^ -(number & 1)  # zigzag: 0, -1, 1, -2, …
