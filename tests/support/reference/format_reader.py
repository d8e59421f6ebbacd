"""Read a run by following ``docs/reference/format.md`` alone, without any module of this project.

Shapes: T position, S width of an array.
"""

import hashlib
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

KINDS = ("outliers", "tallies", "factors")
DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "BOOL": "?"}
Values = dict[str, Any]


# --- markers --------------------------------------------------------------------------------------


def read_marker(path: Path) -> Values:
    """Return the fields of a marker and check its checksum."""
    values = json.loads(path.read_text())
    rest = {name: value for name, value in values.items() if name != "checksum"}
    text = json.dumps(rest, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == values["checksum"]
    assert values["schema_version"] <= 3
    return values


def read_parts(run: Path) -> list[Values]:
    """Return the start and the segments, each with the files that replays added."""
    parts = [read_marker(run / "segments/start.json")]
    assert (parts[0]["first_step"], parts[0]["end_step"], parts[0]["previous"]) == (0, 0, "")
    while (path := run / f"segments/segment-{len(parts) - 1:06d}.json").exists():
        marker, before = read_marker(path), parts[-1]
        assert marker["first_step"] == before["end_step"]
        assert marker["previous"] in ("", before["checksum"])
        parts.append(marker)
    return [parts[0], *(with_added_files(run, i, part) for i, part in enumerate(parts[1:]))]


def with_added_files(run: Path, segment: int, part: Values) -> Values:
    files = list(part["files"])
    for kind in KINDS:
        path = run / f"segments/segment-{segment:06d}-{kind}.json"
        if path.exists() and (added := read_marker(path))["previous"] == part["checksum"]:
            listed = {file["key"] for file in files}
            files += [file for file in added["files"] if file["key"] not in listed]
    return part | {"files": files}


def files_of(parts: list[Values], kind: str, prefix: str = "") -> list[Values]:
    files = [file for part in parts for file in part["files"]]
    return [f for f in files if f["kind"] == kind and f["key"].startswith(prefix)]


# --- files ----------------------------------------------------------------------------------------


def read_bytes(run: Path, file: Values) -> bytes:
    """Return the bytes of a file and check what its marker says of them."""
    data = (run / file["key"]).read_bytes()
    assert len(data) == file["num_bytes"]
    assert hashlib.sha256(data).hexdigest() == file["sha256"]
    return data


def read_table(run: Path, file: Values) -> pa.Table:
    """Return a table and check all of its checksums."""
    data = read_bytes(run, file)
    length = int.from_bytes(data[-8:-4], "little") + 8
    assert hashlib.sha256(data[-length:]).hexdigest() == file["footer_sha256"]
    opened = parquet.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    metadata = opened.metadata
    assert metadata.num_rows == file["rows"]
    assert int(metadata.metadata[b"ontogeny.schema_version"]) <= 3
    crcs = ""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            start = column.dictionary_page_offset or column.data_page_offset
            crcs += f"{zlib.crc32(data[start : start + column.total_compressed_size]):08x}"
    assert metadata.metadata[b"ontogeny.chunk_crc32"].decode() == crcs
    return opened.read().replace_schema_metadata(metadata.metadata)


def read_tables(run: Path, files: list[Values]) -> list[Values]:
    """Return the rows of several tables, one after the other."""
    return [row for file in files for row in read_table(run, file).to_pylist()]


def read_checkpoint(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[start:end], DTYPES[entry["dtype"]])
            tensors[name] = values.reshape(entry["shape"])
    return tensors


# --- factors --------------------------------------------------------------------------------------


def decode_planes(high: bytes, low: bytes, size: int, precision: str) -> np.ndarray:
    """Return the numbers of two strings of bytes, one number at a time."""
    width = {"float32": 4, "float16": 2}[precision]
    complete = len(low) == size * (width - 1)
    numbers, taken = [], 0
    for byte in high:
        if not complete and byte in (0, 255):
            bits = 1 if byte == 255 else 0
        else:
            own = low[taken : taken + width - 1]
            bits = int.from_bytes([*own, byte], "little")
            taken += width - 1
        rotated = bits >> 1 | (bits & 1) << (8 * width - 1)
        numbers.append(rotated.to_bytes(width, "little"))
    assert (len(numbers), taken) == (size, len(low))
    return np.frombuffer(b"".join(numbers), {4: "<f4", 2: "<f2"}[width])


def read_array(row: Values, name: str, layout: Values) -> tuple[np.ndarray, float]:
    """Return an array [T, S] of a row, and its largest error."""
    positions, width, precision = layout["arrays"][name]
    if precision == "int32":
        return np.array(row[name], np.int64).reshape(positions, width), 0.0
    if layout.get("packing") == "plain":
        value = np.frombuffer(row[name], {"float32": "<f4", "float16": "<f2"}[precision])
    else:
        strings = row[f"{name}_high"], row[f"{name}_low"]
        value = decode_planes(*strings, positions * width, precision)
    error = 0.0
    if precision == "float16":
        value = np.ldexp(value.astype(np.float32), row[f"{name}_exponent"])
        error = row[f"{name}_error"]
    return value.reshape(positions, width), error


def gradient_of(row: Values, unit: str, layout: Values, shape: tuple[int, ...]) -> np.ndarray:
    """Return a datum's gradient of a unit, in float64."""
    gradient = np.zeros(shape)
    for factor in layout["uses"][unit]:
        delta_TO = read_array(row, factor["delta"], layout)[0].astype(np.float64)
        first, end = factor.get("columns") or (0, delta_TO.shape[1])
        delta_TO = delta_TO[:, first:end]
        match factor["kind"]:
            case "outer":
                a_TI = read_array(row, factor["a"], layout)[0].astype(np.float64)
                pair = (a_TI, delta_TO) if factor.get("transposed") else (delta_TO, a_TI)
                gradient += (pair[0].T @ pair[1]).reshape(shape)
            case "scale":
                a_TI = read_array(row, factor["a"], layout)[0]
                gradient += (delta_TO * a_TI).sum(0).reshape(shape)
            case "sum":
                gradient += delta_TO.sum(0).reshape(shape)
            case "rows":
                np.add.at(gradient, read_array(row, factor["token"], layout)[0][:, 0], delta_TO)
    return gradient


def read_layout(table: pa.Table) -> Values:
    return json.loads(table.schema.metadata[b"ontogeny.factors"])


def flat_index(entry: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Return the row-major index of an entry."""
    return sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(entry))
