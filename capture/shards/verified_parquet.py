"""Read Parquet files that may be damaged or hostile: verify bytes before pyarrow decodes them.

The footer is compared with the marker's checksum, each column chunk with the footer's, and the
sizes that the file and its pages claim with the size of the file. ``open_parquet`` does all of it.
"""

import atexit
import hashlib
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import BinaryIO

import pyarrow as pa
from pyarrow import parquet

from capture.errors import ShardError
from capture.shards.column_chunks import (
    TRAILER_BYTES,
    Chunk,
    check_chunk,
    check_chunks,
    check_dictionaries,
    chunks_of,
    footer_length,
)
from capture.store.range_file import RangeFile

FIRST_READ_BYTES = 64 * 2**10
"""Size of the first read at the end of the file; most footers are smaller."""
MAX_FOOTER_BYTES = 64 * 2**20
KEPT_FOOTERS = 128
"""Footers of at most ``FIRST_READ_BYTES`` that are not verified again while they are the last."""
REMEDY = "Run: ontogeny verify"
EXIT_SECONDS = 0.05
"""How long a process that has read Parquet waits at its end, see ``wait_at_exit``."""


@contextmanager
def open_parquet(
    source: BinaryIO, where: str, *, num_bytes: int, footer_checksum: str = ""
) -> Iterator[parquet.ParquetFile]:
    """Open a Parquet file of ``num_bytes``, whose chunks are verified before they are decoded.

    ``footer_checksum`` is the one in the marker, empty if it has none. Damaged bytes, and bytes
    that ask for too much memory, raise ``ShardError`` about ``where``, also later in the block.
    """
    try:
        file, checked = open_checked(source, num_bytes, footer_checksum)
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, OSError, pa.ArrowException) as error:
        raise unreadable_error(where, error) from error
    try:
        yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable_error(where, checked.refusal or error) from error


def open_checked(
    source: BinaryIO, num_bytes: int, footer_checksum: str
) -> tuple[parquet.ParquetFile, "CheckedChunks"]:
    """Read and verify the footer; return the file and the reader of its chunks.

    Raises ``ValueError``, ``KeyError``, ``OSError`` or ``pyarrow.ArrowException``.
    """
    footer = read_footer(source, num_bytes)
    if footer_checksum and hashlib.sha256(footer).hexdigest() != footer_checksum:
        raise ValueError("the checksum of its footer differs from the marker's")
    verify = verified_again if len(footer) <= FIRST_READ_BYTES else verified
    metadata, chunks = verify(footer, num_bytes)
    if not metadata.num_rows:
        return without_rows(metadata), CheckedChunks(source, ())
    checked = CheckedChunks(source, chunks)
    whole = RangeFile(num_bytes, checked.read_range)
    wait_at_exit()
    return parquet.ParquetFile(whole, metadata=metadata, arrow_extensions_enabled=False), checked


def verified(footer: bytes, num_bytes: int) -> tuple[parquet.FileMetaData, tuple[Chunk, ...]]:
    """Return what the footer of a file of ``num_bytes`` states, once it is found to be possible.

    Raises ``ValueError`` or ``pyarrow.ArrowException``.
    """
    # The metadata is parsed from the footer alone, so that nothing else is fetched yet.
    alone = pa.BufferReader(b"PAR1" + footer)
    file = parquet.ParquetFile(alone, arrow_extensions_enabled=False)
    if not file.metadata.num_rows:
        return file.metadata, ()
    check_metadata(file.metadata)
    chunks = chunks_of(file.metadata)
    check_chunks(chunks, num_bytes)
    check_dictionaries(chunks, file.schema_arrow)
    return file.metadata, tuple(chunks)


# A query opens the same files again and again, and the answer depends on these bytes alone.
verified_again = lru_cache(KEPT_FOOTERS)(verified)


@cache
def wait_at_exit() -> None:
    """Let Arrow's threads release what they have read before the interpreter ends; set up once.

    They hold bytes of Python, and need its lock to let go of them, some time after a read has
    returned. A thread that waits for the lock when the interpreter ends aborts the process. While
    the main thread sleeps, the lock is free.
    """
    atexit.register(time.sleep, EXIT_SECONDS)


class EmptySource(io.RawIOBase):
    """A large file that reads as empty and records whether a read was attempted."""

    was_read = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return offset

    def tell(self) -> int:
        return 2**62

    def read(self, size: int = -1) -> bytes:
        self.was_read = True
        return b""


def check_metadata(metadata: parquet.FileMetaData) -> None:
    """Raise ``pyarrow.ArrowException`` for column chunks whose metadata is inconsistent.

    For such a chunk ``FileMetaData.row_group`` aborts the whole process, so it must not be called
    first. A pre-buffering read checks all chunks before it fetches bytes and raises instead. It
    reads from ``EmptySource``, so it stops at its first fetch; an error after that fetch only says
    that the source is empty, and is ignored. (The source returns no bytes instead of raising,
    because pyarrow never frees the metadata after an exception from a source.)
    """
    source = EmptySource()
    try:
        parquet.ParquetFile(source, metadata=metadata, pre_buffer=True).read(use_threads=False)
    except (OSError, pa.ArrowException):
        if not source.was_read:
            raise


def without_rows(metadata: parquet.FileMetaData) -> parquet.ParquetFile:
    """Return an empty file with the schema of a file that has no rows; its chunks are not read."""
    sink = pa.BufferOutputStream()
    parquet.ParquetWriter(sink, metadata.schema.to_arrow_schema()).close()
    return parquet.ParquetFile(pa.BufferReader(sink.getvalue()))


def unreadable_error(where: str, error: Exception) -> ShardError:
    reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return ShardError(where, f"is not readable: {reason}", REMEDY)


def read_footer(source: BinaryIO, num_bytes: int) -> bytes:
    """Return the file's bytes from the footer to the end, usually with a single read."""
    start = max(0, num_bytes - FIRST_READ_BYTES)
    source.seek(start)
    tail = source.read(num_bytes - start)
    length = footer_length(tail[-TRAILER_BYTES:]) + TRAILER_BYTES
    if length > min(num_bytes, MAX_FOOTER_BYTES):
        raise ValueError(f"its footer claims {length:,} bytes")
    if length > len(tail):
        source.seek(num_bytes - length)
        tail = source.read(length)
    return tail[-length:]


class CheckedChunks:
    """Reads byte ranges of a Parquet file that consist of whole, valid column chunks.

    An invalid chunk reads as the end of the file instead of raising, because pyarrow never frees a
    file's metadata after an exception from its source. ``refusal`` holds the reason.
    """

    refusal: Exception | None = None

    def __init__(self, source: BinaryIO, chunks: tuple[Chunk, ...]) -> None:
        self.source = source
        self.chunks = chunks

    def read_range(self, start: int, end: int) -> bytes:
        """Return bytes [start, end) after checking every chunk in them; b"" if one is invalid."""
        self.source.seek(start)
        data = self.source.read(end - start)
        try:
            self.check(start, data, end)
        except ValueError as error:
            self.refusal = error
            return b""
        return data

    def check(self, start: int, data: bytes, end: int) -> None:
        """Raise ``ValueError`` unless [start, end) contains only whole, valid chunks."""
        if len(data) != end - start:
            raise ValueError(f"it ends {end - start - len(data):,} bytes early")
        for chunk in self.chunks:
            if chunk.start < end and chunk.end > start:
                if not start <= chunk.start <= chunk.end <= end:
                    raise ValueError(f"its column {chunk.name} overlaps another")
                check_chunk(chunk, data[chunk.start - start : chunk.end - start])
