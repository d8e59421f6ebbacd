"""Rows of a shard in memory, for jobs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from analysis.run.scan import Wanted


@dataclass(frozen=True)
class TableRows:
    """A shard whose rows are a table; yields a few rows at a time."""

    table: pa.Table
    where: str = "rows"

    def batches(
        self, columns: Sequence[str], wanted: Wanted | None = None
    ) -> Iterator[pa.RecordBatch]:
        yield from self.table.select(list(columns)).to_batches(max_chunksize=7)
