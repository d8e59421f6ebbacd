"""Tables that analyses write to a run: ``RUN/analysis/<job>/<table>.parquet``.

The tables of a job appear together or not at all: as with segments, a marker is written last. It
holds the number of steps that the run had, so readers refuse tables of an earlier state, and the
question that the tables answer.

Several sets of tables of a job can stand side by side: ``analysis/<job>/<name>/<table>.parquet``.
Functions here take ``job`` or, for a set with a name, ``table_set(job, name)``.

Tables are written to ``run.tables``, which is the run itself or a place beside it. They are read
from there, or else from the run.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from types import MappingProxyType

import pandas as pd
import pyarrow as pa

from analysis.jobs.question import Question
from analysis.run.run import Run
from analysis.run.scan import Shard, Wanted
from capture.errors import ColumnError, ConfigError, RunError, ShardError
from capture.format import markers
from capture.format.markers import File, Marker, read_marker
from capture.shards import encoding as shards
from capture.store import Store

SET_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
PARTS = ("options", "versions")


def marker_key(job: str) -> str:
    return f"analysis/{job}/tables.json"


def table_key(job: str, name: str) -> str:
    return f"analysis/{job}/{name}.parquet"


def table_set(job: str, name: str) -> str:
    """Return what stands for the set of a job's tables with this name; "" is the unnamed set."""
    return f"{job}/{name}" if name else job


def check_set_name(option: str, name: str) -> str:
    """Return the name of a set; raise ``ConfigError`` unless it can be a folder beside tables."""
    if not SET_NAME.fullmatch(name):
        problem = f"got {name!r}, wanted up to 64 letters, digits, _ and -"
        raise ConfigError(option, problem, "For example: late-steps")
    return name


def table_sets(run: Run, job: str) -> list[str]:
    """Return the names of a job's sets of tables, sorted; "" is the unnamed set."""
    found = set()
    for store in (run.store, run.tables):
        for key in store.keys(f"analysis/{job}"):
            name = key.removeprefix(f"analysis/{job}").removesuffix("/tables.json")
            name = name.removeprefix("/")
            if key == marker_key(table_set(job, name)) and "/" not in name:
                found.add(name)
    return sorted(found)


def place_of(run: Run, job: str) -> Store:
    """Return the store from which a set of tables is read."""
    there = run.tables is run.store or run.tables.exists(marker_key(job))
    return run.tables if there else run.store


def command_for(run: Run, job: str) -> str:
    """Return the command that computes a set of tables."""
    command, _, name = job.partition("/")
    options = f" --name {name}" if name else ""
    if run.tables is not run.store:
        options += f" --to {run.tables.uri}"
    return f"ontogeny {command} {run.uri}{options}"


def concat_frames(frames: Sequence[pd.DataFrame], schema: pa.Schema) -> pd.DataFrame:
    """Concatenate frames, with the columns of the schema in its order and types."""
    tables = [pa.Table.from_pandas(frame, schema, preserve_index=False) for frame in frames]
    return pa.concat_tables([schema.empty_table(), *tables]).to_pandas()


def write_tables(
    run: Run,
    job: str,
    frames: Mapping[str, pd.DataFrame],
    schemas: Mapping[str, pa.Schema],
    question: Question | None = None,
    pages: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a job's tables, one for each schema, in place of those that it wrote before.

    Sets of tables with other names stay. ``question`` is recorded in the marker. ``pages`` are
    files that show the tables, by name (``index.html``), and stand beside them.

    If a table cannot be encoded, the former tables stay. Otherwise they are deleted, marker first,
    before any table is written, so tables of two runs of the job are never mixed.
    """
    files = put_files(run.tables, job, frames, schemas, pages)
    marker = Marker(0, run.steps_done, files, retries=run.tables.take_retries())
    asked = replace(question or Question(job.partition("/")[0], {}, {}), steps=run.steps_done)
    put_marker(run, marker_key(job), marker, asked)


def put_files(
    store: Store,
    job: str,
    frames: Mapping[str, pd.DataFrame],
    schemas: Mapping[str, pa.Schema],
    pages: Mapping[str, bytes],
) -> tuple[File, ...]:
    """Write tables and pages in place of the former set and its marker; returns the files."""
    encoded = {table_key(job, name): encode_frame(frames[name], schemas[name]) for name in schemas}
    store.delete(marker_key(job))
    for key in store.keys(f"analysis/{job}"):
        inside = key.removeprefix(f"analysis/{job}/")
        if key.endswith((".parquet", ".html")) and "/" not in inside:
            store.delete(key)
    for key, (data, _) in encoded.items():
        store.put(key, data)
    files = [File.of(key, "analysis", data, rows) for key, (data, rows) in encoded.items()]
    for name, data in pages.items():
        store.put(f"analysis/{job}/{name}", data)
        files.append(File.of(f"analysis/{job}/{name}", "analysis", data))
    return tuple(files)


def put_marker(run: Run, key: str, marker: Marker, question: Question) -> None:
    """Write a marker with the question beside its fields, which readers of markers ignore."""
    follows = replace(marker, previous=run.committed.last.checksum)
    run.tables.put(key, encode_marker(follows, question))


def encode_marker(marker: Marker, question: Question) -> bytes:
    """Return a marker, written now, with the question beside its fields."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    values = asdict(replace(marker, written_at=now))
    del values["checksum"]
    values["question"] = asdict(question)
    return markers.encode(values | {"checksum": markers.checksum(values)})


def read_question(run: Run, job: str) -> Question:
    """Return the question of a set of tables; its options are empty if it has not been recorded.

    Raises what ``require_tables`` raises.
    """
    marker = require_tables(run, job)
    store = place_of(run, job)
    asked = markers.read_values(store, marker_key(job)).get("question", {})
    if not isinstance(asked, dict):
        raise ShardError(f"{store.uri}/{marker_key(job)}", "holds a question that is no object")
    command = asked.get("command", job.partition("/")[0])
    parts = [part if isinstance(part, dict) else {} for part in map(asked.get, PARTS)]
    return Question(str(command), *parts, steps=marker.end_step)


def encode_frame(frame: pd.DataFrame, schema: pa.Schema) -> tuple[memoryview, int]:
    """Return a table as bytes of a Parquet file, and its number of rows."""
    table = pa.Table.from_pandas(frame, schema, preserve_index=False)
    return shards.encode(table), len(table)


def read_table(
    run: Run,
    job: str,
    name: str,
    schema: pa.Schema,
    wanted: Wanted | None = None,
    newer: Collection[str] = (),
) -> pd.DataFrame:
    """Return the wanted rows of one of a job's tables, with the columns of the schema.

    ``newer``: columns that tables of earlier versions lack, all of them; they are then missing
    values.

    Raises ``RunError`` if the job was not run, or was run on fewer steps, and ``ShardError`` if its
    files are damaged.
    """
    marker = require_tables(run, job)
    key = table_key(job, name)
    file = next((file for file in marker.files if file.key == key and file.rows is not None), None)
    if file is None:
        where = f"{place_of(run, job).uri}/{marker_key(job)}"
        raise ShardError(where, f"does not name {key}", f"Run: {command_for(run, job)}")
    shard = Shard(place_of(run, job), file, marker.first_step, marker.end_step)
    try:
        return shard.rows_of(schema, wanted).to_pandas()
    except ColumnError:
        if not newer:
            raise
    older = pa.schema([field for field in schema if field.name not in newer])
    return shard.rows_of(older, wanted).to_pandas().reindex(columns=schema.names)


def require_tables(run: Run, job: str) -> Marker:
    """Return the marker of a job's tables; raise ``RunError`` unless it fits the run as it is."""
    run.require_shards("steps")
    store = place_of(run, job)
    if not store.exists(marker_key(job)):
        raise RunError(run.uri, f"has no tables of {job}", f"Run: {command_for(run, job)}")
    marker = read_marker(store, marker_key(job))
    if marker.end_step != run.steps_done:
        problem = f"has tables of {job} for {marker.end_step} steps, but {run.steps_done} are done"
        raise RunError(run.uri, problem, f"Run: {command_for(run, job)}")
    if marker.previous and marker.previous != run.committed.last.checksum:
        problem = f"has tables of {job} that were made from another run"
        raise RunError(run.uri, problem, f"Run: {command_for(run, job)}")
    return marker
