"""Tables that analyses write to a run: ``RUN/analysis/<job>/<table>.parquet``.

The tables of a job appear together or not at all: as with segments, a marker is written last. It
holds the number of steps that the run had, so readers refuse tables of an earlier state.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import pyarrow as pa

from analysis.run.run import Run
from analysis.run.scan import Shard, Wanted
from capture.errors import RunError, ShardError
from capture.format.markers import File, Marker, read_marker, write_marker
from capture.shards import encoding as shards


def marker_key(job: str) -> str:
    return f"analysis/{job}/tables.json"


def table_key(job: str, name: str) -> str:
    return f"analysis/{job}/{name}.parquet"


def concat_frames(frames: Sequence[pd.DataFrame], schema: pa.Schema) -> pd.DataFrame:
    """Concatenate frames, with the columns of the schema in its order and types."""
    tables = [pa.Table.from_pandas(frame, schema, preserve_index=False) for frame in frames]
    return pa.concat_tables([schema.empty_table(), *tables]).to_pandas()


def write_tables(
    run: Run, job: str, frames: Mapping[str, pd.DataFrame], schemas: Mapping[str, pa.Schema]
) -> None:
    """Write a job's tables, one for each schema, in place of those that it wrote before.

    If a table cannot be encoded, the former tables stay. Otherwise they are deleted, marker first,
    before any table is written, so tables of two runs of the job are never mixed.
    """
    encoded = {table_key(job, name): encode_frame(frames[name], schemas[name]) for name in schemas}
    run.store.delete(marker_key(job))
    for key in run.store.keys(f"analysis/{job}"):
        if key.endswith(".parquet"):
            run.store.delete(key)
    for key, (data, _) in encoded.items():
        run.store.put(key, data)
    files = [File.of(key, "analysis", data, rows) for key, (data, rows) in encoded.items()]
    marker = Marker(0, run.steps_done, tuple(files), retries=run.store.take_retries())
    write_marker(run.store, marker_key(job), marker, after=run.committed.last)


def encode_frame(frame: pd.DataFrame, schema: pa.Schema) -> tuple[memoryview, int]:
    """Return a table as bytes of a Parquet file, and its number of rows."""
    table = pa.Table.from_pandas(frame, schema, preserve_index=False)
    return shards.encode(table), len(table)


def read_table(
    run: Run, job: str, name: str, schema: pa.Schema, wanted: Wanted | None = None
) -> pd.DataFrame:
    """Return the wanted rows of one of a job's tables, with the columns of the schema.

    Raises ``RunError`` if the job was not run, or was run on fewer steps, and ``ShardError`` if its
    files are damaged.
    """
    marker = require_tables(run, job)
    key = table_key(job, name)
    file = next((file for file in marker.files if file.key == key and file.rows is not None), None)
    if file is None:
        where = f"{run.uri}/{marker_key(job)}"
        raise ShardError(where, f"does not name {key}", f"Run: ontogeny {job} {run.uri}")
    shard = Shard(run.store, file, marker.first_step, marker.end_step)
    return shard.rows_of(schema, wanted).to_pandas()


def require_tables(run: Run, job: str) -> Marker:
    """Return the marker of a job's tables; raise ``RunError`` unless it fits the run as it is."""
    run.require_shards("steps")
    if not run.store.exists(marker_key(job)):
        raise RunError(run.uri, f"has no tables of {job}", f"Run: ontogeny {job} {run.uri}")
    marker = read_marker(run.store, marker_key(job))
    if marker.end_step != run.steps_done:
        problem = f"has tables of {job} for {marker.end_step} steps, but {run.steps_done} are done"
        raise RunError(run.uri, problem, f"Run: ontogeny {job} {run.uri}")
    if marker.previous and marker.previous != run.committed.last.checksum:
        problem = f"has tables of {job} that were made from another run"
        raise RunError(run.uri, problem, f"Run: ontogeny {job} {run.uri}")
    return marker
