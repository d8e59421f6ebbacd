"""Read committed shards as Arrow tables: whole shards in batches, or the few rows of a query.

A ``Shard`` is a small value that can be sent to the process that reads it. Everything read is
checked: size, number of rows and footer against the marker, each column chunk against the footer,
types against the schema. ``ontogeny verify`` checks the parts that no query reads.

Shapes: M row.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from capture.errors import ColumnError, ShardError
from capture.format.markers import File
from capture.gradients.layout import Layout
from capture.shards.column_chunks import MEMORY_ALLOWANCE_BYTES, MEMORY_PER_FILE_BYTE
from capture.shards.encoding import VERSION_KEY
from capture.shards.schema import (
    DATUMS,
    EVALUATIONS,
    OUTLIERS,
    PLANTED,
    SCHEMA_VERSION,
    STEPS,
    VOCABULARY,
    stored_name,
)
from capture.shards.verified_parquet import open_parquet
from capture.store import Store
from capture.store.parallel import map_in_parallel

ROWS_PER_BATCH = 2**20
REMEDY = "Run: ontogeny verify"
SCHEMAS = {"outliers": OUTLIERS, "steps": STEPS, "evaluations": EVALUATIONS, "corpus": DATUMS}
"""Schemas by kind of file; *corpus* is that of datums, not of the tables below."""
OTHER_SCHEMAS = {"corpus/vocab.parquet": VOCABULARY, "corpus/planted.parquet": PLANTED}
WITHOUT_GAPS = {*SCHEMAS, "tallies"}
"""Kinds whose files have no missing values."""

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)
Wanted = Mapping[str, Sequence[Any]]
"""Column → allowed values, ascending. A row matches if every column has an allowed value."""


@dataclass(frozen=True)
class Shard:
    """One table of steps [first_step, end_step) that a marker lists."""

    store: Store
    """The store of the run."""
    file: File
    first_step: int
    end_step: int

    @property
    def where(self) -> str:
        return f"{self.store.uri}/{self.file.key}"

    @property
    def rows(self) -> int:
        assert self.file.rows is not None
        return self.file.rows

    @property
    def schema(self) -> pa.Schema | None:
        """Schema of the file, where its kind determines it."""
        return OTHER_SCHEMAS.get(self.file.key, SCHEMAS.get(self.file.kind))

    def batches(
        self, columns: Sequence[str], wanted: Wanted | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, a bounded number at a time; raise ``ShardError``.

        Row groups whose statistics exclude the wanted values are skipped. Of the others, all rows
        are returned.
        """
        with self.reading() as file:
            self.check_types(file.schema_arrow, [*columns, *(wanted or ())], self.schema)
            groups = promising_groups(file.metadata, wanted or {})
            for batch in file.iter_batches(ROWS_PER_BATCH, groups, list(columns)):
                yield self.validated(batch)

    def table(self, columns: Sequence[str], wanted: Wanted | None = None) -> pa.Table:
        """Return the wanted rows (default: all) in order; raise ``ShardError``.

        Row groups whose statistics exclude the wanted values are not read.
        """
        return self.select(columns, wanted or {}, self.schema)

    def rows_of(self, schema: pa.Schema, wanted: Wanted | None = None) -> pa.Table:
        """Like ``table``, with the columns and types of a schema."""
        return self.select(schema.names, wanted or {}, schema).cast(schema)

    def select(self, columns: Sequence[str], wanted: Wanted, schema: pa.Schema | None) -> pa.Table:
        needed = [*columns, *(name for name in wanted if name not in columns)]
        with self.reading() as file:
            self.check_types(file.schema_arrow, needed, schema)
            groups = groups_with_rows(file, wanted)
            stored = [stored_name(name, written_version(file.schema_arrow)) for name in needed]
            table = self.validated(file.read_row_groups(groups, columns=stored)).select(stored)
        table = table.rename_columns(needed)
        return table.filter(matches(table, wanted)).select(columns)

    def require_rows(self) -> int:
        """Return the number of rows; raise ``ShardError`` if the file differs from its marker."""
        with self.reading():
            return self.rows

    @contextmanager
    def reading(self) -> Iterator[parquet.ParquetFile]:
        """Open the file; raise ``ShardError`` for anything wrong with it, also while it is read."""
        try:
            with self.store.open(self.file.key) as source:
                self.check("bytes", source.seek(0, 2), self.file.num_bytes)
                with open_parquet(
                    source,
                    self.where,
                    num_bytes=self.file.num_bytes,
                    footer_checksum=self.file.footer_sha256,
                ) as file:
                    self.check("rows", file.metadata.num_rows, self.rows)
                    yield file
        except FileNotFoundError as error:
            raise ShardError(self.where, "is missing", REMEDY) from error

    def check_types(
        self, found: pa.Schema, columns: Sequence[str], schema: pa.Schema | None
    ) -> None:
        """Raise ``ShardError`` unless each column exists, once, with the type of the schema."""
        for name in columns:
            stored = stored_name(name, written_version(found))
            place = found.get_field_index(stored)
            if place < 0:
                raise ColumnError(self.where, f"has no column {stored}", REMEDY)
            kind = found.field(place).type
            if schema is not None and not same_type(kind, schema.field(name).type):
                problem = f"has its column {stored} as {kind}, not {schema.field(name).type}"
                raise ColumnError(self.where, problem, REMEDY)

    def validated(self, rows: Rows) -> Rows:
        """Return the rows without metadata; raise ``ShardError`` for missing values or bad text."""
        rows = rows.replace_schema_metadata()
        rows.validate(full=True)
        if self.file.kind in WITHOUT_GAPS and any(column.null_count for column in rows.columns):
            raise ShardError(self.where, "has rows with gaps", REMEDY)
        return rows

    def check(self, what: str, found: int, wanted: int) -> None:
        if found != wanted:
            problem = f"holds {found:,} {what}, its marker says {wanted:,}"
            raise ShardError(self.where, problem, REMEDY)


def written_version(found: pa.Schema) -> int:
    """Return the schema version in a file's metadata, or the current one if it has none."""
    version = (found.metadata or {}).get(VERSION_KEY, b"")
    return int(version) if version.isdigit() and len(version) < 10 else SCHEMA_VERSION


def same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Return whether types are equal, ignoring dictionary indices and names of list items."""
    if pa.types.is_dictionary(found) and pa.types.is_dictionary(wanted):
        return found.value_type == wanted.value_type
    if pa.types.is_list(found) and pa.types.is_list(wanted):
        return found.value_type == wanted.value_type
    return found == wanted


def promising_groups(metadata: parquet.FileMetaData, wanted: Wanted) -> list[int]:
    """Return row groups that may hold a wanted row, by the minimum and maximum of each column."""
    places = {metadata.schema.column(i).name: i for i in range(metadata.num_columns)}
    return [
        group
        for group in range(metadata.num_row_groups)
        if all(
            may_hold(metadata.row_group(group).column(places[name]).statistics, values)
            for name, values in wanted.items()
        )
    ]


def groups_with_rows(file: parquet.ParquetFile, wanted: Wanted) -> list[int]:
    """Return row groups that hold a wanted row, by reading the wanted columns, which are small."""
    groups = promising_groups(file.metadata, wanted)
    if not wanted or len(groups) < 2:
        return groups
    hit_M = matches(file.read_row_groups(groups, columns=list(wanted)), wanted).to_numpy(False)
    rows = [file.metadata.row_group(group).num_rows for group in groups]
    parts = np.split(hit_M, np.cumsum(rows)[:-1])
    return [group for group, part in zip(groups, parts, strict=True) if part.any()]


def may_hold(statistics: parquet.Statistics | None, values: Sequence[Any]) -> bool:
    """Return whether any of the ascending values lies within a column's bounds; True if unknown."""
    if statistics is None or not statistics.has_min_max:
        return True
    place = bisect_left(values, statistics.min)
    return place < len(values) and values[place] <= statistics.max


def matches(table: pa.Table, wanted: Wanted) -> pa.Array:
    """Return whether each row matches."""
    keep = pa.repeat(True, table.num_rows)
    for name, values in wanted.items():
        column = table[name].combine_chunks()
        if isinstance(column, pa.DictionaryArray):
            hit = compute.is_in(column.dictionary, pa.array(values)).take(column.indices)
        else:
            hit = compute.is_in(column, pa.array(values, column.type))
        keep = compute.and_(keep, hit)
    return keep


def parameter_columns(batch: pa.RecordBatch, layout: Layout, where: str) -> np.ndarray:
    """Return each row's parameter as a position among all captured ones (``Layout``), int64 [M].

    Reads the columns unit and index; raises ``ShardError`` for a parameter that the run lacks.
    """
    unit, index_M = batch["unit"], batch["index"].to_numpy()
    names = unit.dictionary.to_pylist()
    unknown = sorted(set(names) - layout.shapes.keys())
    if unknown:
        raise ShardError(where, f"has rows of {unknown[0]}, which was not captured", REMEDY)
    places = [layout.names.index(name) for name in names]
    unit_M = unit.indices.to_numpy()
    beyond = (index_M < 0) | (index_M >= np.array(layout.sizes)[places][unit_M])
    if beyond.any():
        row = int(beyond.argmax())
        parameter = f"{names[unit_M[row]]}[{index_M[row]}]"
        raise ShardError(where, f"has rows of {parameter}, which does not exist", REMEDY)
    return np.array(layout.offsets)[places][unit_M] + index_M


def checked_datums(batch: pa.RecordBatch, num_datums: int, where: str) -> np.ndarray:
    """Return each row's datum, int32 [M]; raise ``ShardError`` for one that the corpus lacks."""
    datum_M = batch["datum"].to_numpy()
    if len(datum_M) and not 0 <= datum_M.min() <= datum_M.max() < num_datums:
        problem = f"has datums {datum_M.min()} to {datum_M.max()}, the corpus has {num_datums:,}"
        raise ShardError(where, problem, REMEDY)
    return datum_M


def read_all(shards: Sequence[Shard], schema: pa.Schema, wanted: Wanted | None = None) -> pa.Table:
    """Return the wanted rows of several shards, concatenated; raise ``ShardError``.

    Each file may claim some memory beyond its size; all files of an answer together may claim that
    only once.
    """
    tables = [schema.empty_table()]
    found, allowed = 0, MEMORY_ALLOWANCE_BYTES
    at_once = shards[0].store.requests_at_once if shards else 1
    read = map_in_parallel(lambda shard: shard.rows_of(schema, wanted), shards, at_once)
    for shard, rows in zip(shards, read, strict=True):
        tables.append(rows)
        found += tables[-1].nbytes
        allowed += MEMORY_PER_FILE_BYTE * shard.file.num_bytes
        if found > allowed:
            problem = (
                f"and those before it hold {found:,} bytes of rows, more than their size allows"
            )
            raise ShardError(shard.where, problem, REMEDY)
    return pa.concat_tables(tables).unify_dictionaries()
