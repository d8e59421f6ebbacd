"""Well-formed but malicious files of a run, as an attacker would make them."""

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import yaml
from damage import intact
from pyarrow import parquet

from capture.format.markers import START, checksum, encode, segment_key
from capture.shards.column_chunks import footer_sha256
from capture.store import Store

Values = dict[str, Any]
TRACES: list[str] = []
"""An entry for every piece of malicious code that was run; tests expect none."""


def leave_trace() -> None:
    TRACES.append("a pickle was loaded")


class Canary:
    """An object that leaves a trace when it is unpickled."""

    def __reduce__(self):
        return leave_trace, ()


def forge_marker(key: str, change: Callable[[Values], object]) -> bytes:
    """Return the marker under this key after a change of its values, with a valid checksum."""
    values = json.loads(intact()[key])
    change(values)
    values.pop("checksum", None)
    return encode(values | {"checksum": checksum(values)})


def with_valid_markers(replaced: dict[str, bytes], rows: int | None = None) -> dict[str, bytes]:
    """Return the replaced files with markers whose sizes and checksums match them.

    ``rows``, if given, becomes the number of rows in the markers' entries of tables.
    """
    files = dict(replaced)
    before = ""
    for key in [START, *map(segment_key, range(4))]:

        def describe_files(values: Values) -> None:
            for file in values["files"]:
                if file["key"] in replaced:
                    data = replaced[file["key"]]
                    file["num_bytes"] = len(data)
                    file["sha256"] = hashlib.sha256(data).hexdigest()
                    if file["rows"] is not None:
                        file["footer_sha256"] = footer_sha256(data)
                        file["rows"] = file["rows"] if rows is None else rows
            values["previous"] = before  # noqa: B023

        files[key] = forge_marker(key, describe_files)
        before = json.loads(files[key])["checksum"]
    return files


def changed_run_yaml(change: Callable[[Values], object]) -> bytes:
    """Return the run's run.yaml after a change of its values."""
    values = yaml.safe_load(intact()["run.yaml"])
    change(values)
    return yaml.safe_dump(values).encode()


def table_bytes(table: pa.Table, **options: Any) -> bytes:
    """Return Parquet as other tools write it; only dictionary columns are dictionary-encoded."""
    sink = pa.BufferOutputStream()
    names = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    parquet.write_table(table, sink, **{"compression": "zstd", "use_dictionary": names} | options)
    return sink.getvalue().to_pybytes()


def write_run(uri: str, files: dict[str, bytes]) -> Store:
    """Write an intact run with some files replaced; removes what was at the URI before."""
    store = Store(uri)
    for key in store.keys():
        store.delete(key)
    for key, data in (intact() | files).items():
        store.put(key, data)
    return store


def safetensors(tensors: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    """Return a safetensors file; ``length`` overrides the stated length of its header."""
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data
