"""The column chunks of a Parquet file: their checksums, and what they may claim.

The footer of a shard carries a CRC-32 of every column chunk, and the marker a checksum of the
footer, so each byte that a query uses is vouched for without reading the rest. What the bytes ask
for is bounded too, for a run may come from anyone: a file may not claim more memory than
``FLOOR_BYTES`` and ``MEMORY_PER_BYTE`` times its size, no page more than the footer says, and only
encodings are decoded whose output that bounds.
"""

import hashlib
import zlib
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import parquet

from capture.shards.page_headers import DICTIONARY, Page, pages_of

CRC_KEY = b"ontogeny.chunk_crc32"
CRC_DIGITS = 8
TAIL_BYTES = 8
"""At the end of a Parquet file: the length of the footer, then ``PAR1``."""
FLOOR_BYTES = 256 * 2**20
MEMORY_PER_BYTE = 200
"""Real shards need 2 to 20 times their size; a text of one repeated word some hundred times."""
PLAIN_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"}
DICTIONARY_ENCODINGS = {*PLAIN_ENCODINGS, "RLE_DICTIONARY", "PLAIN_DICTIONARY"}
ENCODING_NUMBERS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 5: "DELTA_BINARY_PACKED"} | {
    8: "RLE_DICTIONARY",
    9: "BYTE_STREAM_SPLIT",
}
"""How page headers write the encodings."""


@dataclass(frozen=True)
class Chunk:
    """One column of one row group: where it lies, and what the footer says of it."""

    name: str
    start: int
    num_bytes: int
    uncompressed_bytes: int
    num_rows: int
    num_values: int
    """As many as rows, or more in a column of lists."""
    encodings: frozenset[str]
    crc: str
    """Eight hexadecimal digits; empty in shards of earlier versions."""

    @property
    def end(self) -> int:
        return self.start + self.num_bytes

    @property
    def memory_bytes(self) -> int:
        """At most about this much is needed to hold it decoded."""
        return max(self.uncompressed_bytes, 8 * self.num_values)


# --- writing --------------------------------------------------------------------------------------


def reserved(num_chunks: int) -> dict[str, str]:
    """Metadata that holds the place of the checksums until the chunks are written."""
    return {CRC_KEY.decode(): "-" * CRC_DIGITS * num_chunks}


def with_checksums(data: pa.Buffer) -> memoryview:
    """A whole Parquet file, the checksums of its chunks in the place that was reserved for them."""
    found = parquet.read_metadata(pa.BufferReader(data))
    size, view = len(data), memoryview(data)
    crcs = "".join(crc_of(view[c.start : c.end]) for c in chunks_of(found)).encode()
    held = found.metadata[CRC_KEY]
    assert len(held) == len(crcs), "as many chunks as were reserved for"
    footer = bytes(view[size - TAIL_BYTES - footer_length(view[-TAIL_BYTES:]) :])
    assert footer.count(held) == 1 or not held
    return memoryview(b"".join([view[: size - len(footer)], footer.replace(held, crcs)]))


def crc_of(data: bytes | memoryview) -> str:
    return f"{zlib.crc32(data):0{CRC_DIGITS}x}"


def footer_sha256(data: bytes | memoryview) -> str:
    """Checksum of a Parquet file's footer, its length and ``PAR1`` included; "" for other files."""
    if bytes(data[-4:]) != b"PAR1":
        return ""
    length = footer_length(data[-TAIL_BYTES:]) + TAIL_BYTES
    return hashlib.sha256(data[-length:]).hexdigest()


def footer_length(tail: bytes | memoryview) -> int:
    """What the last eight bytes say; raises ``ValueError`` if they are none of Parquet."""
    if bytes(tail[4:]) != b"PAR1":
        raise ValueError("it does not end as Parquet does")
    return int.from_bytes(tail[:4], "little")


# --- reading --------------------------------------------------------------------------------------


def chunks_of(metadata: parquet.FileMetaData) -> list[Chunk]:
    """All column chunks, row group by row group."""
    text = (metadata.metadata or {}).get(CRC_KEY, b"").decode("ascii", "replace")
    crcs = [text[i : i + CRC_DIGITS] for i in range(0, len(text), CRC_DIGITS)]
    columns = [
        (group.num_rows, group.column(place))
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        for place in range(metadata.num_columns)
    ]
    if crcs and len(crcs) != len(columns):
        raise ValueError(f"it has {len(columns)} chunks and {len(crcs)} checksums")
    return [
        Chunk(
            name=column.path_in_schema,
            start=column.dictionary_page_offset or column.data_page_offset,
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
    """Raises ``ValueError`` unless the chunks lie in the file and need a sane amount of memory."""
    for chunk in chunks:
        sizes = (chunk.num_bytes, chunk.uncompressed_bytes, chunk.num_values)
        if min(sizes) < 0 or chunk.start < 4 or chunk.end > num_bytes - TAIL_BYTES:
            raise ValueError(f"its column {chunk.name} lies outside the file")
        if not 0 <= chunk.num_rows <= chunk.num_values:
            raise ValueError(f"its column {chunk.name} claims more rows than values")
        if not chunk.encodings <= DICTIONARY_ENCODINGS:
            odd = ", ".join(sorted(chunk.encodings - DICTIONARY_ENCODINGS))
            raise ValueError(f"its column {chunk.name} is encoded as {odd}")
    needed, allowed = sum(c.memory_bytes for c in chunks), FLOOR_BYTES + MEMORY_PER_BYTE * num_bytes
    if needed > allowed:
        raise ValueError(f"its {num_bytes:,} bytes claim to hold {needed:,}")


def check_dictionaries(chunks: list[Chunk], schema: pa.Schema) -> None:
    """Raises ``ValueError`` for a dictionary that would be written out in memory, row by row."""
    for chunk in chunks:
        kind = schema.field(chunk.name.partition(".")[0]).type
        if not chunk.encodings <= PLAIN_ENCODINGS and not pa.types.is_dictionary(kind):
            raise ValueError(f"its column {chunk.name} is encoded as a dictionary")


def check_chunk(chunk: Chunk, data: bytes) -> None:
    """Raises ``ValueError`` unless the bytes are those written and fit what the footer says."""
    if chunk.crc and crc_of(data) != chunk.crc:
        raise ValueError(f"the checksum of its column {chunk.name} differs at byte {chunk.start:,}")
    pages = list(pages_of(data))
    needed = sum(page.header_bytes + page.uncompressed_bytes for page in pages)
    if needed != chunk.uncompressed_bytes:
        raise ValueError(f"pages of its column {chunk.name} hold more than the footer says")
    num_values = sum(page.num_values for page in pages if page.kind != DICTIONARY)
    if num_values != chunk.num_values or not all(fits(page, chunk) for page in pages):
        raise ValueError(f"pages of its column {chunk.name} are not as the footer says")


def fits(page: Page, chunk: Chunk) -> bool:
    return ENCODING_NUMBERS.get(page.encoding) in chunk.encodings
