"""The column chunks of a Parquet file: their checksums and the limits on their claims.

The footer of a shard holds a CRC-32 of every column chunk, and the run's marker a SHA-256 of the
footer, so a reader can verify exactly the bytes that it uses. A run may come from anyone, so what
its files claim is bounded as well: a file may not need more memory than ``MEMORY_ALLOWANCE_BYTES``
plus ``MEMORY_PER_FILE_BYTE`` times its size, its pages may not need more than its footer says, and
only encodings are accepted whose output size that bounds.

pyarrow's own page checksums verify less; docs/concepts/design-choices.md has the comparison.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from capture.shards.page_headers import DICTIONARY_PAGE, ParquetPage, pages_of

CRC_KEY = b"ontogeny.chunk_crc32"
CRC_DIGITS = 8
TRAILER_BYTES = 8
"""Size of the end of a Parquet file: the footer's length (4 bytes), then ``PAR1``."""
MEMORY_ALLOWANCE_BYTES = 256 * 2**20
MEMORY_PER_FILE_BYTE = 200
"""Real shards need 2 to 20 times their size; a text of one repeated word about 100 times."""
PLAIN_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"}
DICTIONARY_ENCODINGS = {*PLAIN_ENCODINGS, "RLE_DICTIONARY", "PLAIN_DICTIONARY"}
ENCODING_NUMBERS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 5: "DELTA_BINARY_PACKED"} | {
    8: "RLE_DICTIONARY",
    9: "BYTE_STREAM_SPLIT",
}
"""Encodings by their number in page headers."""


@dataclass(frozen=True)
class Chunk:
    """One column of one row group: its byte range and its sizes, as the footer states them."""

    name: str
    start: int
    num_bytes: int
    uncompressed_bytes: int
    num_rows: int
    num_values: int
    """Equal to ``num_rows``, or larger in a column of lists."""
    encodings: frozenset[str]
    crc: str
    """CRC-32 in eight hexadecimal digits; empty in shards of earlier versions."""

    @property
    def end(self) -> int:
        return self.start + self.num_bytes

    @property
    def memory_bytes(self) -> int:
        """Approximate upper bound of the memory that the decoded chunk needs."""
        return max(self.uncompressed_bytes, 8 * self.num_values)


# --- writing --------------------------------------------------------------------------------------


def checksum_placeholder(num_chunks: int) -> dict[str, str]:
    """Return footer metadata of the right length, to be overwritten with the checksums.

    The footer is written with the chunks, before their bytes are known.
    """
    return {CRC_KEY.decode(): "-" * CRC_DIGITS * num_chunks}


def fill_checksums(data: memoryview) -> memoryview:
    """Return the file with its placeholder replaced by the chunks' checksums, in place."""
    size, view = len(data), data.cast("B")
    found = parquet.read_metadata(pa.BufferReader(pa.py_buffer(view)))
    ranges = (byte_range(column) for _, column in columns_of(found))
    crcs = "".join(crc32_hex(view[start:end]) for start, end in ranges).encode()
    placeholder = found.metadata[CRC_KEY]
    assert len(placeholder) == len(crcs), "one checksum per chunk"
    footer = bytes(view[size - TRAILER_BYTES - footer_length(view[-TRAILER_BYTES:]) :])
    # Same length, so no offset in the file changes. The value follows its key, and keys with values
    # follow the statistics, which may hold the same characters: a token of dashes.
    start = footer.index(placeholder, footer.rindex(CRC_KEY))
    if view.readonly:  # the buffer of an output stream is not, and need not be copied
        view = memoryview(bytearray(view))
    start += size - len(footer)
    view[start : start + len(crcs)] = crcs
    return view


def columns_of(metadata: parquet.FileMetaData) -> Iterator[tuple[int, Any]]:
    """Yield the number of rows of each column chunk and what the footer states of it."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for number in range(metadata.num_columns):
            yield group.num_rows, group.column(number)


def byte_range(column: Any) -> tuple[int, int]:
    """Return first and end byte of a column chunk."""
    start = column.dictionary_page_offset or column.data_page_offset
    return start, start + column.total_compressed_size


def crc32_hex(data: bytes | memoryview) -> str:
    return f"{zlib.crc32(data):0{CRC_DIGITS}x}"


def footer_sha256(data: bytes | memoryview) -> str:
    """Return the SHA-256 of a Parquet file from its footer to its end; "" for other files."""
    if bytes(data[-4:]) != b"PAR1":
        return ""
    length = footer_length(data[-TRAILER_BYTES:]) + TRAILER_BYTES
    return hashlib.sha256(data[-length:]).hexdigest()


def footer_length(tail: bytes | memoryview) -> int:
    """Return the footer length that a file's last eight bytes state.

    Raises ``ValueError`` if they do not end a Parquet file.
    """
    if bytes(tail[4:]) != b"PAR1":
        raise ValueError("it does not end like a Parquet file")
    return int.from_bytes(tail[:4], "little")


# --- reading --------------------------------------------------------------------------------------


def chunks_of(metadata: parquet.FileMetaData) -> list[Chunk]:
    """Return all column chunks, row group by row group, with their checksums.

    Raises ``ValueError`` if the number of checksums is wrong.
    """
    text = (metadata.metadata or {}).get(CRC_KEY, b"").decode("ascii", "replace")
    crcs = [text[i : i + CRC_DIGITS] for i in range(0, len(text), CRC_DIGITS)]
    columns = list(columns_of(metadata))
    if crcs and len(crcs) != len(columns):
        raise ValueError(f"it has {len(columns)} chunks and {len(crcs)} checksums")
    return [
        Chunk(
            name=column.path_in_schema,
            start=byte_range(column)[0],
            num_bytes=column.total_compressed_size,
            uncompressed_bytes=column.total_uncompressed_size,
            num_rows=num_rows,
            num_values=column.num_values,
            encodings=frozenset(column.encodings),
            crc=crc,
        )
        for (num_rows, column), crc in zip(columns, crcs or [""] * len(columns), strict=True)
    ]


def check_chunks(chunks: list[Chunk], num_bytes: int) -> None:
    """Raise ``ValueError`` if a chunk lies outside the file or the file claims too much memory."""
    for chunk in chunks:
        sizes = (chunk.num_bytes, chunk.uncompressed_bytes, chunk.num_values)
        if min(sizes) < 0 or chunk.start < 4 or chunk.end > num_bytes - TRAILER_BYTES:
            raise ValueError(f"its column {chunk.name} lies outside the file")
        if not 0 <= chunk.num_rows <= chunk.num_values:
            raise ValueError(f"its column {chunk.name} claims more rows than values")
        if not chunk.encodings <= DICTIONARY_ENCODINGS:
            odd = ", ".join(sorted(chunk.encodings - DICTIONARY_ENCODINGS))
            raise ValueError(f"its column {chunk.name} is encoded as {odd}")
    needed, allowed = (
        sum(c.memory_bytes for c in chunks),
        MEMORY_ALLOWANCE_BYTES + MEMORY_PER_FILE_BYTE * num_bytes,
    )
    if needed > allowed:
        raise ValueError(f"its {num_bytes:,} bytes claim to hold {needed:,}")


def check_dictionaries(chunks: list[Chunk], schema: pa.Schema) -> None:
    """Raise ``ValueError`` for a dictionary-encoded column that Arrow decodes to plain values.

    A small file could then repeat one long text in every row. Columns of Arrow's dictionary type
    stay as indices, so they are allowed.
    """
    for chunk in chunks:
        kind = schema.field(chunk.name.partition(".")[0]).type
        if not chunk.encodings <= PLAIN_ENCODINGS and not pa.types.is_dictionary(kind):
            raise ValueError(f"its column {chunk.name} is encoded as a dictionary")


def check_chunk(chunk: Chunk, data: bytes) -> None:
    """Raise ``ValueError`` if a chunk's bytes fail its checksum or contradict the footer."""
    if chunk.crc and crc32_hex(data) != chunk.crc:
        raise ValueError(f"the checksum of its column {chunk.name} differs at byte {chunk.start:,}")
    # A forger can recompute the checksum. So the sizes are compared too, before the decoder
    # allocates what a page header asks for.
    pages = list(pages_of(data))
    needed = sum(page.header_bytes + page.uncompressed_bytes for page in pages)
    if needed != chunk.uncompressed_bytes:
        raise ValueError(f"pages of its column {chunk.name} hold more than the footer says")
    num_values = sum(page.num_values for page in pages if page.kind != DICTIONARY_PAGE)
    if num_values != chunk.num_values or not all(
        has_declared_encoding(page, chunk) for page in pages
    ):
        raise ValueError(f"pages of its column {chunk.name} are not as the footer says")


def has_declared_encoding(page: ParquetPage, chunk: Chunk) -> bool:
    return ENCODING_NUMBERS.get(page.encoding) in chunk.encodings
