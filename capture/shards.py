"""Parquet in and out, with the encodings that suit each column.

Integers that run or repeat are delta-packed; shifts are near-random floats, for which a dictionary
is useless and splitting their bytes lets zstd find the repeating exponents. Row groups are small,
so that a reader who wants one parameter of a shard reads a few per cent of it.
"""

import pyarrow as pa
from pyarrow import parquet

from capture.schema import SCHEMA_VERSION

ROWS_PER_GROUP = 32_768
VERSION_KEY = b"ontogeny.schema_version"


def encode(
    table: pa.Table, *, rows_per_group: int | None = None, statistics: list[str] | bool = True
) -> memoryview:
    """The table as the bytes of a Parquet file; equal tables give equal bytes.

    ``statistics``: the columns whose least and greatest value each row group tells.
    """
    table = table.replace_schema_metadata({VERSION_KEY: str(SCHEMA_VERSION).encode()})
    sink = pa.BufferOutputStream()
    flat = [field for field in table.schema if not pa.types.is_nested(field.type)]
    parquet.write_table(
        table,
        sink,
        row_group_size=rows_per_group or ROWS_PER_GROUP,
        write_statistics=statistics,
        compression="zstd",
        compression_level=1,
        use_dictionary=[field.name for field in flat if pa.types.is_dictionary(field.type)],
        column_encoding={field.name: coding for field in flat if (coding := encoding(field.type))},
    )
    return memoryview(sink.getvalue())


def encoding(kind: pa.DataType) -> str | None:
    """Parquet's name of the encoding for a column, None for its default."""
    if pa.types.is_floating(kind):
        return "BYTE_STREAM_SPLIT"
    if pa.types.is_integer(kind):
        return "DELTA_BINARY_PACKED"
    return None


def decode(data: bytes) -> pa.Table:
    """The table that was encoded; raises ``pyarrow.ArrowException`` if the bytes are none."""
    return parquet.read_table(pa.BufferReader(data)).replace_schema_metadata()


def count_rows(data: bytes) -> int:
    """Rows of a Parquet file, from its footer; raises ``pyarrow.ArrowException`` if it has none."""
    return parquet.read_metadata(pa.BufferReader(data)).num_rows
