"""Reading an untrusted run: malicious Parquet files and weights are refused."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from checkout import IMPORT_PATH
from damage import NUMBERS
from hostile import (
    TRACES,
    Canary,
    Values,
    forge_marker,
    safetensors,
    table_bytes,
    with_valid_markers,
    write_run,
)

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.jobs.tables import read_table
from analysis.levels import Level
from analysis.run.run import open_run
from capture.errors import ShardError
from capture.shards.schema import DATUMS, OUTLIERS
from capture.shards.verified_parquet import open_parquet
from cluster.local.threads import run_job

URI = "memory://hostile"
SHARD = "outliers/segment-000000-w00.parquet"


@pytest.fixture(autouse=True)
def nothing_ran(monkeypatch):
    """Assert after each test that no malicious code ran."""
    monkeypatch.setattr(os, "system", TRACES.append)
    yield
    assert TRACES == []


# --- Parquet --------------------------------------------------------------------------------------


def rows(number: int) -> pa.Table:
    """Return valid rows of outliers."""
    numbers = np.zeros(number, np.int64)
    columns = {name: numbers for name in OUTLIERS.names if name != "unit"}
    unit = pa.DictionaryArray.from_arrays(np.zeros(number, np.int16), ["layers.1.linear2.weight"])
    return pa.table(columns | {"unit": unit}).select(OUTLIERS.names).cast(OUTLIERS)


def refused(data: bytes, problem: str, key: str = SHARD, number: int | None = None) -> None:
    write_run(URI, with_valid_markers({key: data}, number))
    with pytest.raises(ShardError, match=rf"{key}: .*{problem}"):
        _ = open_run(URI).texts if key.startswith("corpus") else open_run(URI).shifts()


def test_a_column_of_wrong_type_or_with_gaps_or_missing_is_refused():
    table = rows(20)
    text = table.set_column(4, "index", pa.array(["x"] * 20))
    refused(table_bytes(text), "has its column index as string, not int32", number=20)
    refused(table_bytes(table.drop_columns("index")), "has no column index", number=20)
    gaps = table.set_column(0, "step", pa.array([None] * 20, pa.int32()))
    refused(table_bytes(gaps), "has rows with gaps", number=20)


@pytest.mark.parametrize("level", ["neuron", "unit"])
def test_jobs_refuse_what_queries_refuse(level: Level):
    """This holds for jobs that read whole shards and those that read the row groups of units."""
    table = rows(20)
    text = table.set_column(4, "index", pa.array(["x"] * 20))
    gaps = table.set_column(2, "datum", pa.array([None] * 20, pa.int32()))
    wide = table.set_column(4, "index", table["index"].cast(pa.int64()))
    for replaced, problem in (
        (text, "has its column index as string, not int32"),
        (wide, "has its column index as int64, not int32"),
        (table.drop_columns("index"), "has no column index"),
        (gaps, "has rows with gaps"),
    ):
        write_run(URI, with_valid_markers({SHARD: table_bytes(replaced)}, 20))
        with pytest.raises(ShardError, match=rf"{SHARD}: .*{problem}"):
            attribute(open_run(URI), run_job, AttributionConfig(level=level))


def test_a_small_file_with_very_many_rows_is_refused():
    data = table_bytes(pa.table({"step": pa.nulls(10**8, pa.int32())}))
    assert len(data) < 2**20
    refused(data, "claim to hold 800,000,000", number=10**8)


def test_a_page_that_is_larger_than_the_footer_says_is_refused():
    """The header of a page states a larger size, for which a decoder would allocate memory."""
    data = bytearray(table_bytes(rows(20_000)))
    start, kind = 4, b"\x15\x00\x15"
    assert data[start : start + 3] == kind
    size_offset = start + 3
    # The size is a varint of at least three bytes; set all bits of the second one.
    assert data[size_offset] & data[size_offset + 1] & 0x80
    data[size_offset + 1] |= 0x7F
    refused(bytes(data), "hold more than the footer says", number=20_000)


def test_text_as_a_dictionary_is_refused():
    """A million rows refer to one text of a megabyte."""
    number = 10**6
    key = "corpus/datums.parquet"
    text = pa.DictionaryArray.from_arrays(np.zeros(number, np.int32), ["x" * 2**20])
    columns = {"datum": np.zeros(number, np.int32), "last_target": np.zeros(number, np.int32)}
    tokens = pa.array([[]] * number, DATUMS.field("tokens").type)
    table = pa.table(columns | {"tokens": tokens, "text": text})
    data = table_bytes(table)
    assert len(data) < 2**17
    refused(data, "has its column text as dictionary<.*>, not string", key, number)
    refused(table_bytes(table, store_schema=False), "encoded as a dictionary", key, number)


def open_bytes(data: bytes):
    with open_parquet(io.BytesIO(data), "x", num_bytes=len(data)) as file:
        return file.read()


def test_encodings_that_expand_text_are_refused():
    table = pa.table({"text": ["x" * 9] * 99})
    data = table_bytes(table, column_encoding={"text": "DELTA_BYTE_ARRAY"})
    with pytest.raises(ShardError, match="column text is encoded as DELTA_BYTE_ARRAY"):
        open_bytes(data)


@pytest.mark.parametrize("length", [2**31 - 1, 2**32 - 1, 500_000, 0])
def test_a_footer_of_absurd_length_is_refused(length):
    data = b"PAR1" + b"x" * 4 * 10**5 + length.to_bytes(4, "little") + b"PAR1"
    with pytest.raises(ShardError, match="is not readable"):
        open_bytes(data)


def test_a_deeply_nested_schema_is_refused():
    """Each of 100,000 groups is the only field of the one before; no decoder may recurse so far."""
    depth = 100_000
    element = bytes([0x48, 1]) + b"a" + bytes([0x15, 2, 0])  # name "a", one child
    root = b"\x48\x01r\x15\x02\x00"
    many = b"\xfc" + varint(depth + 1)
    footer = b"\x15\x02\x19" + many + root + element * depth + b"\x16\x02\x19\x0c\x00"
    data = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(ShardError, match="is not readable"):
        open_bytes(data)


def varint(number: int) -> bytes:
    """Encode a number as Thrift does: seven bits per byte, the lowest first."""
    low = bytes([number & 127 | (128 if number > 127 else 0)])
    return low + varint(number >> 7) if number > 127 else low


PANDAS = {
    "index_columns": ["__import__('os').system('x')", {"kind": "range", "start": 0, "stop": 9e99}],
    "columns": [{"name": "number", "field_name": "number", "numpy_type": "object",
                 "pandas_type": "python", "metadata": None}],
    "column_indexes": [], "pandas_version": "3.0.0",
}  # fmt: skip


def test_metadata_of_pandas_and_arrow_is_ignored():
    """Metadata may name an index, types, and an extension type that old versions unpickle."""
    frame = open_run(write_run(URI, {}).uri)
    wanted = read_table(frame, "attribute", "numbers", NUMBERS)
    field = pa.field(
        "name",
        pa.string(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": pickle.dumps(Canary()),
        },
    )
    schema = pa.schema([NUMBERS.field("number"), field], {"pandas": json.dumps(PANDAS)})
    table = pa.Table.from_pandas(wanted, NUMBERS, preserve_index=False).cast(NUMBERS)
    data = table_bytes(pa.Table.from_arrays(table.columns, schema=schema))
    key = "analysis/attribute/tables.json"

    def vouch(values: Values) -> None:
        file = values["files"][0]
        digest = hashlib.sha256(data).hexdigest()
        file.update(num_bytes=len(data), sha256=digest, footer_sha256="")

    files = {"analysis/attribute/numbers.parquet": data, key: forge_marker(key, vouch)}
    run = open_run(write_run(URI, files).uri)
    found = read_table(run, "attribute", "numbers", NUMBERS)
    assert found.equals(wanted)


def test_datums_with_unknown_tokens_or_of_wrong_length_are_refused():
    key = "corpus/datums.parquet"
    run = open_run(write_run(URI, {}).uri)
    table = run.datum_table("train")
    column = pa.array([[9999] * 8] * len(table), DATUMS.field("tokens").type)
    data = table_bytes(table.set_column(1, "tokens", column))
    write_run(URI, with_valid_markers({key: data}, len(table)) | {})
    with pytest.raises(ShardError, match="has tokens 9999 to 9999"):
        _ = open_run(URI).token_NT
    short = pa.array([[1] * 7] * len(table), DATUMS.field("tokens").type)
    data = table_bytes(table.set_column(1, "tokens", short))
    write_run(URI, with_valid_markers({key: data}, len(table)))
    with pytest.raises(ShardError, match="has datums that are not of 8 tokens"):
        _ = open_run(URI).token_NT


# --- checkpoints ----------------------------------------------------------------------------------

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not readable"),
        (pickle.dumps(Canary()), "is not readable"),
        (safetensors({}, b"", length=2**63), "is not readable"),
        (safetensors({}, b"", length=10**8), "is not readable"),
        (safetensors({"x": ONE | {"shape": [2**62, 4]}}, b""), "is not readable"),
        (safetensors({"x": ONE | {"data_offsets": [0, 2**40]}}, b"1234"), "is not readable"),
        (safetensors({"x": ONE | {"dtype": "PICKLE"}}, b"1234"), "is not readable"),
        (safetensors({"x": ONE}, b"1234"), "lacks decoder.bias"),
        (safetensors({}, b""), "lacks decoder.bias"),
    ],
    ids=range(9),
)
def test_hostile_weights_are_refused(data, problem):
    write_run(URI, with_valid_markers({"checkpoints/step-000014.safetensors": data}))
    with pytest.raises(ShardError, match=rf"step-000014\.safetensors: {problem}"):
        open_run(URI).model(14)


# --- a bound on the memory of all of it -----------------------------------------------------------

BOUNDED = """
import resource, sys
import damage
damage.versions = lambda make=damage.functools.cache(damage.make_files): [make()]
import test_hostile as u
import test_hostile_files as t

t.write_run(t.URI, {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
t.test_a_small_file_with_very_many_rows_is_refused()
t.test_text_as_a_dictionary_is_refused()
t.test_a_deeply_nested_schema_is_refused()
for text in (u.LAUGHS, "[" * 50_000):
    try:
        u.read_yaml(text)
    except ValueError:
        pass
try:
    u.read_marker(t.write_run(t.URI, {u.START: b"[" * 2**25}), u.START)
except t.ShardError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_memory_stays_bounded():
    """Measures a separate process; includes the memory that the tests use to make the content."""
    path = os.pathsep.join([IMPORT_PATH, str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400  # MiB
