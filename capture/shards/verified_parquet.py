"""Parquet that is checked as it is read: what a decoder sees was looked at before.

The footer is compared with the marker's checksum, every column chunk with the footer's, and what a
file or one of its pages claims to hold with its size. Whoever reads through ``open_parquet`` need
not trust the file.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa
from pyarrow import parquet

from capture.errors import ShardError
from capture.shards.column_chunks import (
    TAIL_BYTES,
    Chunk,
    check_chunk,
    check_chunks,
    check_dictionaries,
    chunks_of,
    footer_length,
)
from capture.store.range_file import RangeFile

FIRST_READ_BYTES = 64 * 2**10
"""Fetched to find the footer; most footers are smaller."""
MAX_FOOTER_BYTES = 64 * 2**20
REMEDY = "Run: ontogeny verify"


@contextmanager
def open_parquet(
    source: BinaryIO, where: str, *, num_bytes: int, footer_checksum: str = ""
) -> Iterator[parquet.ParquetFile]:
    """The file behind a source, each chunk of which is checked before it is decoded.

    ``footer_checksum`` is the marker's; empty where it has none. Whatever comes up within, in bytes
    that are not what was written or ask for too much memory, is a ``ShardError``.
    """
    try:
        file, checked = prepare(source, num_bytes, footer_checksum)
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, OSError, pa.ArrowException) as error:
        raise unreadable(where, error) from error
    try:
        yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(where, checked.refusal or error) from error


def prepare(
    source: BinaryIO, num_bytes: int, footer_checksum: str
) -> tuple[parquet.ParquetFile, "CheckedChunks"]:
    """The file, of which the footer was read and looked at; raises all sorts of errors."""
    footer = read_footer(source, num_bytes)
    if footer_checksum and hashlib.sha256(footer).hexdigest() != footer_checksum:
        raise ValueError("the checksum of its footer differs from the marker's")
    metadata = parquet.ParquetFile(pa.BufferReader(b"PAR1" + footer)).metadata
    if not metadata.num_rows:
        return without_rows(metadata), CheckedChunks(source, [])
    check_metadata(metadata)
    chunks = chunks_of(metadata)
    check_chunks(chunks, num_bytes)
    checked = CheckedChunks(source, chunks)
    whole = RangeFile(num_bytes, checked.read_range)
    file = parquet.ParquetFile(whole, metadata=metadata, arrow_extensions_enabled=False)
    check_dictionaries(chunks, file.schema_arrow)
    return file, checked


class Nothing(io.RawIOBase):
    """A large file of which nothing comes; knows whether it was asked."""

    asked = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return offset

    def tell(self) -> int:
        return 2**62

    def read(self, size: int = -1) -> bytes:
        self.asked = True
        return b""


def check_metadata(metadata: parquet.FileMetaData) -> None:
    """Raises ``pyarrow.ArrowException`` for column chunks that contradict themselves.

    Asked for one of these, ``FileMetaData.row_group`` ends the whole process. A reader looks at all
    of them before it reads, and can be told so; here it gets no further than its first question.
    (An exception in place of the empty answer would make pyarrow keep the metadata for ever.)
    """
    source = Nothing()
    try:
        parquet.ParquetFile(source, metadata=metadata, pre_buffer=True).read(use_threads=False)
    except (OSError, pa.ArrowException):
        if not source.asked:
            raise


def without_rows(metadata: parquet.FileMetaData) -> parquet.ParquetFile:
    """A file of this schema that is empty; its column chunks lie nowhere, so none is read."""
    sink = pa.BufferOutputStream()
    parquet.ParquetWriter(sink, metadata.schema.to_arrow_schema()).close()
    return parquet.ParquetFile(pa.BufferReader(sink.getvalue()))


def unreadable(where: str, error: Exception) -> ShardError:
    reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return ShardError(where, f"is not readable: {reason}", REMEDY)


def read_footer(source: BinaryIO, num_bytes: int) -> bytes:
    """The last bytes of the file, from the footer on; mostly in one read."""
    start = max(0, num_bytes - FIRST_READ_BYTES)
    source.seek(start)
    tail = source.read(num_bytes - start)
    length = footer_length(tail[-TAIL_BYTES:]) + TAIL_BYTES
    if length > min(num_bytes, MAX_FOOTER_BYTES):
        raise ValueError(f"its footer claims {length:,} bytes")
    if length > len(tail):
        source.seek(num_bytes - length)
        tail = source.read(length)
    return tail[-length:]


class CheckedChunks:
    """The bytes of a Parquet file, of which only whole, checked column chunks can be read.

    A chunk that is not as it should be reads as the end of the file, for pyarrow keeps a file's
    metadata for ever when an exception comes out of it; ``refusal`` tells why.
    """

    refusal: Exception | None = None

    def __init__(self, source: BinaryIO, chunks: list[Chunk]) -> None:
        self.source = source
        self.chunks = chunks

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes [start, end), every chunk among them checked; none if one is to be refused."""
        self.source.seek(start)
        data = self.source.read(end - start)
        try:
            self.check(start, data, end)
        except ValueError as error:
            self.refusal = error
            return b""
        return data

    def check(self, start: int, data: bytes, end: int) -> None:
        """Raises ``ValueError`` unless [start, end) consists of whole chunks as written."""
        if len(data) != end - start:
            raise ValueError(f"it ends {end - start - len(data):,} bytes early")
        for chunk in self.chunks:
            if chunk.start < end and chunk.end > start:
                if not start <= chunk.start <= chunk.end <= end:
                    raise ValueError(f"its column {chunk.name} overlaps another")
                check_chunk(chunk, data[chunk.start - start : chunk.end - start])
