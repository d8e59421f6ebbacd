"""Parquet in and out, with the encodings that suit each column.

Integers that run or repeat are delta-packed; shifts are near-random floats, for which a dictionary
is useless and splitting their bytes lets zstd find the repeating exponents. Row groups are small,
so that a reader who wants one parameter of a shard reads a few per cent of it. Every column chunk
carries a checksum, and but for factors every page too.
"""

import io
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from capture.shards.column_chunks import reserved, with_checksums
from capture.shards.schema import SCHEMA_VERSION
from capture.shards.verified_parquet import open_parquet

ROWS_PER_GROUP = 32_768
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
    """The table as the bytes of a Parquet file; equal tables give equal bytes.

    ``statistics``: the columns whose least and greatest value each row group tells;
    ``uncompressed``: those that are noise; ``page_checksums``: whether pages have checksums too,
    which are for other readers, and a third as much work again where nearly all is noise;
    ``metadata``: what the footer says besides.
    """
    table = table.replace_schema_metadata({VERSION_KEY: str(SCHEMA_VERSION).encode()})
    sink = pa.BufferOutputStream()
    size = rows_per_group or ROWS_PER_GROUP
    flat = [field for field in table.schema if not pa.types.is_nested(field.type)]
    writer = parquet.ParquetWriter(
        sink,
        table.schema,
        write_statistics=statistics,
        **compression(table.schema, uncompressed),
        use_dictionary=[field.name for field in flat if pa.types.is_dictionary(field.type)],
        column_encoding={field.name: coding for field in flat if (coding := encoding(field.type))},
        write_page_checksum=page_checksums,
    )
    with writer:
        writer.write_table(table, row_group_size=size)
        writer.add_key_value_metadata({**metadata, **reserved(num_chunks(table, size))})
    return with_checksums(sink.getvalue())


def compression(schema: pa.Schema, uncompressed: Collection[str]) -> dict[str, Any]:
    """How Parquet's writer is told which columns to leave as they are."""
    if not uncompressed:
        return {"compression": "zstd", "compression_level": 1}
    names = [name for name in schema.names if name not in uncompressed]
    lists = {name for name in names if pa.types.is_list(schema.field(name).type)}
    packed = [f"{name}.list.element" if name in lists else name for name in names]
    codecs = dict.fromkeys(uncompressed, "none") | dict.fromkeys(packed, "zstd")
    return {"compression": codecs, "compression_level": dict.fromkeys(packed, 1)}


def num_chunks(table: pa.Table, rows_per_group: int) -> int:
    """Column chunks that the file will have; an empty table has one row group too."""
    groups = max(1, -(-table.num_rows // rows_per_group))
    return groups * sum(num_leaves(field.type) for field in table.schema)


def num_leaves(kind: pa.DataType) -> int:
    """Columns that Parquet makes of one of Arrow's."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return sum(map(num_leaves, inner)) if inner else 1


def encoding(kind: pa.DataType) -> str | None:
    """Parquet's name of the encoding for a column, None for its default."""
    if pa.types.is_floating(kind):
        return "BYTE_STREAM_SPLIT"
    if pa.types.is_integer(kind):
        return "DELTA_BINARY_PACKED"
    return None


def decode(data: bytes, where: str = "a shard") -> pa.Table:
    """The table that was encoded; raises ``ShardError`` if the bytes are none."""
    with open_parquet(io.BytesIO(data), where, num_bytes=len(data)) as file:
        return file.read().replace_schema_metadata()
