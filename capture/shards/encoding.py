"""Tables to Parquet bytes and back, with an encoding for each kind of column.

Integers, which run or repeat, are delta-packed. Shifts are near-random floats: a dictionary does
not help, but BYTE_STREAM_SPLIT separates their bytes, and zstd then finds the repeating exponents.
Row groups are small, so that reading one parameter of a shard fetches a few per cent of it. Every
column chunk has a checksum, and every page too, except in shards of factors.
"""

import io
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from capture.shards.column_chunks import checksum_placeholder, fill_checksums
from capture.shards.reused_memory import ReusedSink
from capture.shards.schema import SCHEMA_VERSION
from capture.shards.verified_parquet import open_parquet

ROWS_PER_GROUP = 32_768
REUSED_BYTES = 4 * 2**20
"""The bytes of a larger table are made in memory that is used again."""
VERSION_KEY = b"ontogeny.schema_version"


def encode(
    table: pa.Table,
    *,
    rows_per_group: int | None = None,
    statistics: list[str] | bool = True,
    uncompressed: Collection[str] = (),
    page_checksums: bool = True,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> memoryview:
    """Return the table as the bytes of a Parquet file; equal tables give equal bytes.

    ``statistics``: columns (or all) for which each row group stores its minimum and maximum.
    ``uncompressed``: columns to leave uncompressed, because they are noise.
    ``page_checksums``: whether pages get checksums too. They serve other readers, and cost a third
    of the encoding time in shards that are mostly noise.
    ``metadata``: further key-value pairs for the footer.
    """
    table = table.replace_schema_metadata({VERSION_KEY: str(SCHEMA_VERSION).encode()})
    is_large = table.nbytes > REUSED_BYTES
    sink = ReusedSink(table.nbytes) if is_large else pa.BufferOutputStream()
    size = rows_per_group or ROWS_PER_GROUP
    flat = [field for field in table.schema if not pa.types.is_nested(field.type)]
    writer = parquet.ParquetWriter(
        pa.PythonFile(sink, "w") if isinstance(sink, ReusedSink) else sink,
        table.schema,
        write_statistics=statistics,
        **compression(table.schema, uncompressed),
        use_dictionary=[field.name for field in flat if pa.types.is_dictionary(field.type)],
        column_encoding={
            field.name: coding for field in flat if (coding := column_encoding(field.type))
        },
        write_page_checksum=page_checksums,
    )
    with writer:
        writer.write_table(table, row_group_size=size)
        writer.add_key_value_metadata({**metadata, **checksum_placeholder(num_chunks(table, size))})
    return fill_checksums(memoryview(sink.getvalue()))


def compression(schema: pa.Schema, uncompressed: Collection[str]) -> dict[str, Any]:
    """Return the compression arguments of ``ParquetWriter``."""
    if not uncompressed:
        return {"compression": "zstd", "compression_level": 1}
    names = [name for name in schema.names if name not in uncompressed]
    lists = {name for name in names if pa.types.is_list(schema.field(name).type)}
    packed = [f"{name}.list.element" if name in lists else name for name in names]
    codecs = dict.fromkeys(uncompressed, "none") | dict.fromkeys(packed, "zstd")
    return {"compression": codecs, "compression_level": dict.fromkeys(packed, 1)}


def num_chunks(table: pa.Table, rows_per_group: int) -> int:
    """Return how many column chunks the file will have; an empty table has one row group too."""
    groups = max(1, -(-table.num_rows // rows_per_group))
    return groups * sum(num_leaves(field.type) for field in table.schema)


def num_leaves(kind: pa.DataType) -> int:
    """Return how many Parquet columns an Arrow type becomes."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return sum(map(num_leaves, inner)) if inner else 1


def column_encoding(kind: pa.DataType) -> str | None:
    """Return the Parquet encoding for a column type; None means pyarrow's default."""
    if pa.types.is_floating(kind):
        return "BYTE_STREAM_SPLIT"
    if pa.types.is_integer(kind):
        return "DELTA_BINARY_PACKED"
    return None


def decode(data: bytes, where: str = "a shard") -> pa.Table:
    """Return the encoded table; raises ``ShardError`` about ``where`` for invalid bytes."""
    with open_parquet(io.BytesIO(data), where, num_bytes=len(data)) as file:
        return file.read().replace_schema_metadata()
