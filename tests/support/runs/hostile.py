"""What an attacker would put in the place of a run's files, well formed as far as it can be."""

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


def leave_trace() -> None:
    TRACES.append("a pickle was loaded")


class Canary:
    """Unpickled, it leaves a trace."""

    def __reduce__(self):
        return leave_trace, ()


def forged(key: str, change: Callable[[Values], object]) -> bytes:
    """A marker that was changed and given the checksum that suits it."""
    values = json.loads(intact()[key])
    change(values)
    values.pop("checksum", None)
    return encode(values | {"checksum": checksum(values)})


def vouched(replaced: dict[str, bytes], rows: int | None = None) -> dict[str, bytes]:
    """Replaced files, and markers that vouch for them: a run that is wholly the attacker's."""
    files = dict(replaced)
    before = ""
    for key in [START, *map(segment_key, range(4))]:

        def vouch(values: Values) -> None:
            for file in values["files"]:
                if file["key"] in replaced:
                    data = replaced[file["key"]]
                    file["num_bytes"] = len(data)
                    file["sha256"] = hashlib.sha256(data).hexdigest()
                    if file["rows"] is not None:
                        file["footer_sha256"] = footer_sha256(data)
                        file["rows"] = file["rows"] if rows is None else rows
            values["previous"] = before  # noqa: B023

        files[key] = forged(key, vouch)
        before = json.loads(files[key])["checksum"]
    return files


def run_yaml(change: Callable[[Values], object]) -> bytes:
    values = yaml.safe_load(intact()["run.yaml"])
    change(values)
    return yaml.safe_dump(values).encode()


def table_bytes(table: pa.Table, **options: Any) -> bytes:
    """Parquet as any tool writes it, dictionaries only of what is one."""
    sink = pa.BufferOutputStream()
    names = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    parquet.write_table(table, sink, **{"compression": "zstd", "use_dictionary": names} | options)
    return sink.getvalue().to_pybytes()


def place(uri: str, files: dict[str, bytes]) -> Store:
    """A run in which some files are the attacker's."""
    store = Store(uri)
    for key in store.keys():
        store.delete(key)
    for key, data in (intact() | files).items():
        store.put(key, data)
    return store


def safetensors(tensors: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data
