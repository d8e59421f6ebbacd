"""The pages of a Parquet column chunk, read without decoding them: how large do they say they are?

A page's header states how much memory its data needs, and a decoder believes it: a few hundred
bytes can ask for gigabytes. So the headers are walked first and compared with the footer, which is
bounded as a whole. Headers are structures of Thrift's compact protocol: a byte with the distance to
the next field number and the field's type, then the value; 0 ends a structure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 8
"""Structures inside structures; a real page header has two levels."""
MAX_HEADER_BYTES = 2**20

DATA, DICTIONARY = 0, 2
"""Types of pages; what else there is, we never write."""


@dataclass(frozen=True)
class Page:
    """What the header of a page says."""

    kind: int
    header_bytes: int
    uncompressed_bytes: int
    compressed_bytes: int
    num_values: int
    encoding: int


def pages_of(chunk: bytes) -> Iterator[Page]:
    """The pages of a column chunk, in order; raises ``ValueError`` where there is no page."""
    start = 0
    while start < len(chunk):
        page = read_page(chunk, start)
        start += page.header_bytes + page.compressed_bytes
        if start > len(chunk):
            raise ValueError("a page ends beyond its chunk")
        yield page


def read_page(chunk: bytes, start: int) -> Page:
    header = Header(chunk, start)
    try:
        fields = header.struct(MAX_DEPTH)
        kind = fields[1]
        inner = fields[{DATA: 5, DICTIONARY: 7}[kind]]
        page = Page(kind, header.place - start, fields[2], fields[3], inner[1], inner[2])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("a page header makes no sense") from error
    sizes = (page.uncompressed_bytes, page.compressed_bytes, page.num_values, page.encoding)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("a page has an impossible size")
    return page


class Header:
    """Reads one structure of Thrift's compact protocol, field by field."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data = data
        self.place = place
        self.end = min(len(data), place + MAX_HEADER_BYTES)

    def struct(self, depth: int) -> dict[int, Any]:
        """Values by field number; structures are dictionaries, lists and text are passed over."""
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
                self.place += length
                return None
            case 12:
                return self.struct(depth)
        raise ValueError(f"a page header has a field of type {kind}")

    def byte(self) -> int:
        if not 0 <= self.place < self.end:
            raise ValueError("a page header is cut off")
        self.place += 1
        return self.data[self.place - 1]

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
        return number >> 1 ^ -(number & 1)
